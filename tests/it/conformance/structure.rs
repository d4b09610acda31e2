//! How packets are made: data types, fixed header, packet identifiers, properties (1.5 and 2).
