"""What every Triptych service and client shares."""
