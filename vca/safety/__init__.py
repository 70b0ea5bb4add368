"""The safety filter: words of a prompt before a picture is made, the picture before anybody sees it."""
