"""What a server does under load: requests that arrive whether or not the ones before are answered."""
