"""The networks: frames to latents and back, motion, prediction. Knows coders, never bytes."""
