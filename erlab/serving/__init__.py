"""Systems made ready for requests: profiles, engines, Triton, external servers."""
