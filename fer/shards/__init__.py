"""The files that training reads: schema, writing, verification, sample order. The only package that imports pyarrow."""
