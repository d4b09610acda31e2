//! SUBSCRIBE and SUBACK (3.8 and 3.9).
