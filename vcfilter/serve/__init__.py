"""A web page that plays neural video files in any browser.

Frames are decoded segment by segment as a browser asks for them, coded as H.264 and sent as
fragmented MP4 with the file's own audio; nothing is decoded that no browser asked for.
"""
