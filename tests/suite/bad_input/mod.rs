//! What bad input gets: a message that names the object, segment or LSN and what to do, exit code 1 (255 from
//! `restore_command`), nothing lost, nothing half-written, no wrong page, no panic. On a folder and on MinIO.
//!
//! | what is wrong | where it is tested |
//! |---|---|
//! | another cluster's, a truncated, damaged or misplaced segment | `segments`: pushed, and found in the store by slicing, restoring, `restore_command`, `zenith page` |
//! | a missing segment | `segments`; `status` (`--max-age`, `--prometheus`) |
//! | a missing, damaged or cut layer, manifest version, identity, name, base image object | `objects`: every object, every command |
//! | an unreachable store | `reach`: closed port, a server that never answers, one that is overloaded, no such bucket or folder, every command |
//! | wrong credentials, missing rights | `reach`: every command |
//! | a full disk | `disk`: the store's, the target's, that of temporary files, standard output |
//! | an LSN or time outside, or before the end of the base image; a name that does not exist | `targets` |
//! | a data directory that is not empty | `targets` |
//! | not PostgreSQL 15, `wal_level = minimal`, a standby, another cluster's server, a page that fails its checksum | `tools/tests/push_base.rs` |
//! | block and segment sizes that Zenith does not know | `tools/tests/push_base_sizes.rs`, `segments` |

mod disk;
mod objects;
mod reach;
mod segments;
mod status;
mod targets;
mod world;
