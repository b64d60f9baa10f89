"""text-dedup's MinHash over a file, for curation.py: run by the Python of an environment that has the package.

    PYTHON curation_text_dedup.py SET.jsonl FOLDER NGRAM PERMUTATIONS THRESHOLD COUNT

Its own command does the work; the last line printed is, of each document, the number of the one that stands for its cluster.
"""

import json
import sys

from text_dedup import minhash  # type: ignore[import-not-found]


def main(words: list[str]) -> None:
    path, folder, ngram, permutations, threshold, count = words
    given = [
        "--path",
        "json",
        "--data_files",
        path,
        "--split",
        "train",
        "--cache_dir",
        f"{folder}/cache",
        "--output",
        f"{folder}/out",
    ]
    given += ["--column", "text", "--ngram", ngram, "--num_perm", permutations, "--threshold", threshold]
    given += ["--min_length", "0", "--batch_size", "10000", "--num_proc", "1"]
    minhash.main(given, standalone_mode=False)
    print(json.dumps([int(minhash.uf.find(number)) for number in range(int(count))]))


if __name__ == "__main__":
    main(sys.argv[1:])
