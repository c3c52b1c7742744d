"""What the two web applications share: their page, and what they do with the chat."""
