//! CONNECT (3.1): what is accepted, what a session, a will and a keep-alive are.
