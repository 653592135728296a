"""A generator at a server, discriminators at sites that keep their data: `server`, `site`, and what they say."""
