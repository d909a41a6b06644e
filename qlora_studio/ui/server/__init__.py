"""What the page's process holds and does beside showing: session, clock, messages, who may talk to it."""
