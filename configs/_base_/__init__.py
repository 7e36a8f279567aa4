"""What configs derive from: model, schedule, runtime."""
