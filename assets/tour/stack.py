class Stack:
    def __init__(self):
        self._values = []

    def __len__(self):

    def push(self, value):
        self._values.append(value)
