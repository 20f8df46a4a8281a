"""Draw what several chapters share: plots, pictures, surfaces, names beside points, colours."""
