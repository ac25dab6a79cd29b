"""Two scenes of one place, before and after: what has changed, object by object or class by class."""
