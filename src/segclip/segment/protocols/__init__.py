"""Protocols: how a photo is cut, labels are embedded, and regions become a label map."""
