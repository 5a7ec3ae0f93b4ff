//! The archive, the slicer and base images over WAL that is written by hand.

#[path = "../support/mod.rs"]
mod support;

mod archived;
mod bounds;
mod faults;
mod following;
mod gaps;
mod handmade;
mod images;
mod switches;
