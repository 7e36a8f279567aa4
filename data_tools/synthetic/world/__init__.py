"""The street world: layout, scenery, objects, their motion."""
