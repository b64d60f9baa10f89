"""Training by workers that seldom talk: outer loops, codecs, error feedback, transports, recovery."""
