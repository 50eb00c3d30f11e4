"""Pictures by a trained model in one forward pass, which `ganstyle apply` runs.

painter.py   pictures of one shape at a time, shared by the devices; large ones in strips
folders.py   many pictures, read ahead, those of one shape together
clip.py      a film, and how its frames are kept from flickering
"""
