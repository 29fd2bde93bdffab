"""The networks: pictures to latents and back, motion, prediction. Knows coders, never bytes."""
