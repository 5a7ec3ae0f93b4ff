//! Rows of system catalogs, as far as they are read without a server: columns whose places are fixed, because those before
//! them are never null and of fixed length (catalog/pg_*.h of PostgreSQL 15).

use crate::{Oid, le};

/// `DatabaseRelationId`.
pub const PG_DATABASE: Oid = 1262;
/// `RelationRelationId`.
pub const PG_CLASS: Oid = 1259;
/// `NamespaceRelationId`.
pub const PG_NAMESPACE: Oid = 2615;
/// `FirstNormalObjectId` (access/transam.h): what the server's own catalogs consist of is below it.
pub const FIRST_NORMAL_OID: Oid = 16_384;
/// `NAMEDATALEN`.
const NAME_LEN: usize = 64;
/// `DATCONNLIMIT_INVALID_DB`.
const INVALID_DATABASE: i32 = -2;

/// A row of `pg_class` (`FormData_pg_class`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClassRow {
    /// `oid`.
    pub oid: Oid,
    /// `relname`.
    pub name: String,
    /// `relnamespace`.
    pub namespace: Oid,
    /// `relfilenode`; 0 for one that has no file, or is in the relation map.
    pub file: Oid,
    /// `reltablespace`; 0: the database's own.
    pub tablespace: Oid,
    /// `relkind`.
    pub kind: u8,
}

impl ClassRow {
    /// From a tuple's columns; `None` if they are too short.
    pub fn decode(data: &[u8]) -> Option<ClassRow> {
        Some(ClassRow {
            oid: le::u32(data, 0)?,
            name: name(data, 4)?,
            namespace: le::u32(data, 68)?,
            file: le::u32(data, 88)?,
            tablespace: le::u32(data, 92)?,
            kind: *data.get(115)?,
        })
    }
}

/// A row of `pg_namespace` (`FormData_pg_namespace`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceRow {
    /// `oid`.
    pub oid: Oid,
    /// `nspname`.
    pub name: String,
}

impl NamespaceRow {
    /// From a tuple's columns; `None` if they are too short.
    pub fn decode(data: &[u8]) -> Option<NamespaceRow> {
        Some(NamespaceRow { oid: le::u32(data, 0)?, name: name(data, 4)? })
    }
}

/// A row of `pg_database` (`FormData_pg_database`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseRow {
    /// `oid`.
    pub oid: Oid,
    /// `datname`.
    pub name: String,
    /// `datconnlimit`.
    connection_limit: i32,
}

impl DatabaseRow {
    /// From a tuple's columns; `None` if they are too short.
    pub fn decode(data: &[u8]) -> Option<DatabaseRow> {
        let connection_limit = le::u32(data, 80)?.cast_signed();
        Some(DatabaseRow { oid: le::u32(data, 0)?, name: name(data, 4)?, connection_limit })
    }

    /// Whether `DROP DATABASE` has begun: nobody can connect any more.
    pub fn is_invalid(&self) -> bool {
        self.connection_limit == INVALID_DATABASE
    }
}

/// A `name`, in whatever encoding the database has.
fn name(data: &[u8], at: usize) -> Option<String> {
    let bytes: [u8; NAME_LEN] = le::array(data, at)?;
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_that_is_cut_short_is_none() {
        let whole = [b'n'; 116];
        assert_eq!(ClassRow::decode(&whole).map(|row| (row.kind, row.name.len())), Some((b'n', NAME_LEN)));
        assert_eq!(ClassRow::decode(&whole[..115]), None);
        assert_eq!(NamespaceRow::decode(&whole[..67]), None);
        assert_eq!(DatabaseRow::decode(&whole[..83]), None);
    }

    #[test]
    fn a_database_whose_drop_has_begun_is_invalid() {
        let row = |limit: i32| {
            let mut data = [0; 84];
            le::put(&mut data, 4, b"orders");
            le::put(&mut data, 80, &limit.to_le_bytes());
            DatabaseRow::decode(&data).map(|row| (row.name.clone(), row.is_invalid()))
        };
        assert_eq!(row(-2), Some(("orders".to_owned(), true)));
        assert_eq!(row(-1), Some(("orders".to_owned(), false)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..160)) {
            let _ = (ClassRow::decode(&data), NamespaceRow::decode(&data), DatabaseRow::decode(&data));
        }
    }
}
