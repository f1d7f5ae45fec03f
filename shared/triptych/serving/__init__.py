"""What every service is: a server with settings, addresses, admission and errors."""
