"""What the packets of a video tell about its frames before anything is decoded."""
