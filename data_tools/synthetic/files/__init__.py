"""The street world on disk, in the nuScenes schema."""
