//! Databases and tablespaces.

use super::codec::{ModelError, Reader, Writer};
use bytes::Bytes;
use zenith_pgformat::{Lsn, Oid};

/// Where a database that was made by copying files came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alias {
    /// Tablespace copied from.
    pub spc: Oid,
    /// Database copied from.
    pub db: Oid,
    /// The source as it was after the record that ends here.
    pub lsn: Lsn,
}

/// The value of `KeyClass::Database`: the database's directory exists in that tablespace. A tombstone says that
/// it and everything in it is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Database {
    /// End of the record that created it; 0/0 for what a base image brought. A relation's row that is older
    /// belongs to an earlier database of the same number.
    pub created: Lsn,
    /// Forks that have no row of their own since `created` are the source's.
    pub alias: Option<Alias>,
}

impl Database {
    const WHAT: &'static str = "database";

    /// Version 1: created; a flag; then the alias' tablespace, database and LSN; numbers in LEB128.
    pub fn encode(&self) -> Bytes {
        let writer = Writer::new(1).lsn(self.created);
        match self.alias {
            None => writer.byte(0).finish(),
            Some(Alias { spc, db, lsn }) => {
                writer.byte(1).varint(u64::from(spc)).varint(u64::from(db)).lsn(lsn).finish()
            }
        }
    }

    /// Reads what [`Database::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Database, ModelError> {
        let mut reader = Reader::new(Self::WHAT, 1, bytes)?;
        let created = reader.lsn()?;
        let alias = match reader.boolean()? {
            false => None,
            true => Some(Alias { spc: reader.varint32()?, db: reader.varint32()?, lsn: reader.lsn()? }),
        };
        if alias.is_some_and(|alias| alias.lsn > created) {
            return Err(reader.malformed("a copy from the future of its source"));
        }
        reader.finish()?;
        Ok(Database { created, alias })
    }
}

/// The value of `KeyClass::Tablespace`: a tablespace other than the two built-in ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tablespace {
    /// Where it lies on the primary; empty for one inside the data directory (`allow_in_place_tablespaces`).
    pub location: String,
}

impl Tablespace {
    const WHAT: &'static str = "tablespace";
    /// `MAXPGPATH`, pg_config_manual.h.
    const MAX_LOCATION: usize = 1024;

    /// Version 1: the location in UTF-8, to the end.
    pub fn encode(&self) -> Bytes {
        Writer::new(1).tail(self.location.as_bytes()).finish()
    }

    /// Reads what [`Tablespace::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Tablespace, ModelError> {
        let mut reader = Reader::new(Self::WHAT, 1, bytes)?;
        let location = reader.tail();
        if location.len() >= Self::MAX_LOCATION {
            return Err(reader.malformed("a location longer than PostgreSQL's paths"));
        }
        match std::str::from_utf8(location) {
            Ok(location) => Ok(Tablespace { location: location.to_owned() }),
            Err(_) => Err(reader.malformed("a location that is not UTF-8")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_database_reads_back(created: u64, spc: u32, db: u32, before: u64, copied: bool) {
            let lsn = Lsn(created.saturating_sub(before));
            let alias = copied.then_some(Alias { spc, db, lsn });
            let database = Database { created: Lsn(created), alias };
            prop_assert_eq!(Database::decode(&database.encode()), Ok(database));
        }

        #[test]
        fn a_tablespace_reads_back(location in "[^\0]{0,200}") {
            let tablespace = Tablespace { location };
            prop_assert_eq!(Tablespace::decode(&tablespace.encode()), Ok(tablespace));
        }

        #[test]
        fn hostile_bytes_are_refused_or_read_but_never_panic(bytes: Vec<u8>) {
            let _ = Database::decode(&bytes);
            let _ = Tablespace::decode(&bytes);
        }
    }
}
