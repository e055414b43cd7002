"""Methods that C3 is compared with: CLIPRe, MAGIC, ZeroCap and ESPER; one file each."""
