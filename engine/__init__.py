"""Training and inference loops on MMEngine's Runner."""
