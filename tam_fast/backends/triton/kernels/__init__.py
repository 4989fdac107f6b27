"""The kernels, one module a family: ``common`` is below all of them, ``windows`` and ``strips`` are the filters'."""
