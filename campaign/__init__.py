"""A seeded campaign of faults and hostile inputs against rcdeploy: `python -m campaign`. Not part of the wheel."""
