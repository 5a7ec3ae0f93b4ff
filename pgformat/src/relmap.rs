//! Relation maps, `pg_filenode.map`: where the catalogs are that cannot be looked up in `pg_class`
//! (`RelMapFile`, relmapper.c of PostgreSQL 15).

use crate::{Oid, le};

/// The file's length.
pub const RELMAP_LEN: usize = 512;
/// `RELMAPPER_FILEMAGIC`.
const MAGIC: u32 = 0x0059_2717;
/// `MAX_MAPPINGS` of PostgreSQL 15.
const MAX_MAPPINGS: usize = 62;
/// `offsetof(RelMapFile, crc)`; four bytes of padding follow the CRC.
const CRC_OFFSET: usize = 504;

/// The file's name in a database's directory, and in `global`.
pub const RELMAP_FILE: &str = "pg_filenode.map";

/// A relation map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RelMap {
    mappings: Vec<(Oid, Oid)>,
}

/// Why bytes are no relation map of PostgreSQL 15. Callers add the database.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RelMapError {
    /// Wrong length; PostgreSQL 16 and later have 524 bytes.
    #[error("a relation map is {RELMAP_LEN} bytes in PostgreSQL 15; this is {0}")]
    Length(usize),
    /// Wrong magic number.
    #[error("relation map has magic number {0:#x}, expected {MAGIC:#x}")]
    Magic(u32),
    /// More entries than fit.
    #[error("relation map claims {0} mappings; at most {MAX_MAPPINGS} fit")]
    Count(u32),
    /// The checksum does not fit.
    #[error("relation map is damaged: its CRC is {stored:08X}, computed {computed:08X}")]
    Crc {
        /// What the file says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A map given to [`RelMap::new`] has too many entries.
    #[error("{0} mappings do not fit into a relation map: at most {MAX_MAPPINGS}")]
    TooMany(usize),
}

impl RelMap {
    /// A map of (catalog's OID, relfilenode) pairs.
    pub fn new(mappings: Vec<(Oid, Oid)>) -> Result<RelMap, RelMapError> {
        if mappings.len() > MAX_MAPPINGS {
            return Err(RelMapError::TooMany(mappings.len()));
        }
        Ok(RelMap { mappings })
    }

    /// Decodes and checks a file.
    pub fn decode(bytes: &[u8]) -> Result<RelMap, RelMapError> {
        let length = RelMapError::Length(bytes.len());
        if bytes.len() != RELMAP_LEN {
            return Err(length);
        }
        let field = |offset| le::u32(bytes, offset).ok_or(RelMapError::Length(bytes.len()));
        let magic = field(0)?;
        if magic != MAGIC {
            return Err(RelMapError::Magic(magic));
        }
        let count = field(4)?;
        if count as usize > MAX_MAPPINGS {
            return Err(RelMapError::Count(count));
        }
        let stored = field(CRC_OFFSET)?;
        let computed = crc32c::crc32c(bytes.get(..CRC_OFFSET).ok_or(length)?);
        if stored != computed {
            return Err(RelMapError::Crc { stored, computed });
        }
        let entry = |index: usize| Ok((field(8 + index * 8)?, field(12 + index * 8)?));
        Ok(RelMap { mappings: (0..count as usize).map(entry).collect::<Result<_, _>>()? })
    }

    /// The file's bytes, with its CRC.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; RELMAP_LEN];
        le::put(&mut bytes, 0, &MAGIC.to_le_bytes());
        le::put(&mut bytes, 4, &(self.mappings.len() as u32).to_le_bytes());
        for (index, (oid, file)) in self.mappings.iter().enumerate() {
            le::put(&mut bytes, 8 + index * 8, &oid.to_le_bytes());
            le::put(&mut bytes, 12 + index * 8, &file.to_le_bytes());
        }
        let crc = crc32c::crc32c(bytes.get(..CRC_OFFSET).unwrap_or_default());
        le::put(&mut bytes, CRC_OFFSET, &crc.to_le_bytes());
        bytes
    }

    /// (catalog's OID, relfilenode) pairs in the file's order.
    pub fn mappings(&self) -> &[(Oid, Oid)] {
        &self.mappings
    }

    /// A catalog's relfilenode.
    pub fn file_of(&self, catalog: Oid) -> Option<Oid> {
        self.mappings.iter().find(|(oid, _)| *oid == catalog).map(|(_, file)| *file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_map_reads_back_as_written() {
        let map = RelMap::new(vec![(1259, 1259), (1249, 16_400)]).expect("two fit");
        let bytes = map.encode();
        assert_eq!(bytes.len(), RELMAP_LEN);
        assert_eq!(RelMap::decode(&bytes), Ok(map.clone()));
        assert_eq!(map.file_of(1249), Some(16_400));
        assert_eq!(map.file_of(1), None);
    }

    #[test]
    fn damage_is_named() {
        let good = RelMap::default().encode();
        let changed = |offset: usize, value: u32| {
            let mut bytes = good.clone();
            le::put(&mut bytes, offset, &value.to_le_bytes());
            RelMap::decode(&bytes)
        };
        assert_eq!(RelMap::decode(&good[..511]), Err(RelMapError::Length(511)));
        assert_eq!(changed(0, 1), Err(RelMapError::Magic(1)));
        assert_eq!(changed(4, 63), Err(RelMapError::Count(63)));
        assert!(matches!(changed(100, 1), Err(RelMapError::Crc { .. })));
    }

    #[test]
    fn more_than_fits_is_refused() {
        assert_eq!(RelMap::new(vec![(1, 1); 63]), Err(RelMapError::TooMany(63)));
        assert!(RelMap::new(vec![(1, 1); 62]).is_ok());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(count in any::<u32>(), noise in prop::collection::vec(any::<u8>(), 512)) {
            let mut bytes = noise;
            drop(RelMap::decode(&bytes));
            le::put(&mut bytes, 0, &MAGIC.to_le_bytes());
            le::put(&mut bytes, 4, &count.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
            le::put(&mut bytes, CRC_OFFSET, &crc.to_le_bytes());
            drop(RelMap::decode(&bytes));
        }
    }
}
