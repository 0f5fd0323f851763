"""One bit an element, for the masks that a ReLU's backward pass needs."""
