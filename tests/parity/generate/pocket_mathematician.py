"""The parity case of the pocket model pocket-mathematician: the real SmolLM2-135M-Instruct in 4 bits with the shipped adapter.

    python pocket_mathematician.py
"""

from pocket_astronomer import adapted

if __name__ == "__main__":
    adapted("mathematician", "Llemma", "Multiply 47*6")
