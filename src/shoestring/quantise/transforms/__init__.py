"""Changes of a model before it is rounded that leave what it computes, one file each."""
