//! Orangery.
