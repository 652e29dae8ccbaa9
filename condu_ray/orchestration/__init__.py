"""Ray and MLflow: the only floor that imports either."""
