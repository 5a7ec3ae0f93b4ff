//! System catalogs at an LSN, read from their pages without a server: the rows that a new transaction would see there.

use crate::error::ReadError;
use crate::snapshot::{Snapshot, bad};
use bytes::Bytes;
use std::collections::BTreeMap;
use zenith_layers::{Key, Slru};
use zenith_pgformat::heap::{Cause, Tuple, tuples};
use zenith_pgformat::rel::GLOBAL_TABLESPACE;
use zenith_pgformat::relmap::RelMap;
use zenith_pgformat::slru::clog::{self, XactStatus};
use zenith_pgformat::slru::{PAGES_PER_SEGMENT, multixact};
use zenith_pgformat::{Fork, Oid, Page, RelNode, Xid};

/// `pg_database`, `pg_class`, `pg_namespace`: their oids (catalog/pg_*.h).
const PG_DATABASE: Oid = 1262;
const PG_CLASS: Oid = 1259;
const PG_NAMESPACE: Oid = 2615;
/// Blocks that are read at once.
const BATCH: u32 = 128;
/// Pages of SLRUs that are kept.
const SLRU_PAGES: usize = 64;
/// `NAMEDATALEN`.
const NAME: usize = 64;
/// `ISUPDATE_from_mxstatus`: members with a higher status updated (access/multixact.h).
const MULTI_FOR_UPDATE: u8 = 3;
/// Transactions that share a row of a catalog; more are taken for damage.
const MEMBERS_MAX: u32 = 1 << 16;

/// A row of `pg_class`, as far as it is read. PostgreSQL 15's layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Class {
    pub(crate) oid: Oid,
    pub(crate) name: String,
    pub(crate) namespace: Oid,
    /// Its file; 0 for one that has none, or is in the relation map.
    pub(crate) file: Oid,
    /// Where the file lies; 0: the database's own tablespace.
    pub(crate) tablespace: Oid,
    /// `relkind`.
    pub(crate) kind: u8,
}

/// The catalogs of one database at one LSN.
pub(crate) struct Catalogs {
    snapshot: Snapshot,
    /// The database's own tablespace, where its relation map lies.
    tablespace: Oid,
    db: Oid,
    map: RelMap,
    slru: BTreeMap<(u32, u32), Bytes>,
    /// Names of schemas, once somebody asks for one.
    schemas: Option<BTreeMap<Oid, String>>,
}

/// A row of `pg_database`, as far as it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DatabaseRow {
    oid: Oid,
    pub(crate) name: String,
    /// `datconnlimit`.
    limit: i32,
}

impl DatabaseRow {
    /// Whether `DROP DATABASE` has begun: nobody can connect any more (`DATCONNLIMIT_INVALID_DB`, catalog/pg_database.h).
    pub(crate) fn is_invalid(&self) -> bool {
        self.limit == -2
    }
}

impl Catalogs {
    /// `None`: there is no such database.
    pub(crate) async fn of(snapshot: &Snapshot, db: Oid) -> Result<Option<Catalogs>, ReadError> {
        let entries = snapshot.databases().into_iter().filter(|entry| entry.db == db);
        for place in entries.map(|entry| entry.spc) {
            if let Some(map) = snapshot.rel_map(place, db).await? {
                return Ok(Some(Catalogs::with(snapshot, place, db, &map)?));
            }
        }
        Ok(None)
    }

    /// The catalogs that all databases share.
    pub(crate) async fn shared(snapshot: &Snapshot) -> Result<Catalogs, ReadError> {
        let key = Key::rel_map(GLOBAL_TABLESPACE, 0);
        let map = snapshot.rel_map(GLOBAL_TABLESPACE, 0).await?;
        let map = map.ok_or(ReadError::LostBase { key, lsn: snapshot.lsn() })?;
        Catalogs::with(snapshot, GLOBAL_TABLESPACE, 0, &map)
    }

    /// A database by the shared catalogs; `None`: it has no row.
    pub(crate) async fn database(&mut self, db: Oid) -> Result<Option<DatabaseRow>, ReadError> {
        let file = self.database_file()?;
        let mut found = None;
        self.rows(file, |data| found = found.take().or(database(data).filter(|row| row.oid == db))).await?;
        Ok(found)
    }

    /// Where `pg_database` lies.
    pub(crate) fn database_file(&self) -> Result<Oid, ReadError> {
        self.mapped(PG_DATABASE)
    }

    fn mapped(&self, catalog: Oid) -> Result<Oid, ReadError> {
        let key = Key::rel_map(self.tablespace, self.db);
        let missing =
            || bad(key, self.snapshot.lsn(), format!("it does not name the file of catalog {catalog}"));
        self.map.file_of(catalog).ok_or_else(missing)
    }

    fn with(snapshot: &Snapshot, tablespace: Oid, db: Oid, map: &[u8]) -> Result<Catalogs, ReadError> {
        let key = Key::rel_map(tablespace, db);
        let map = RelMap::decode(map).map_err(|error| bad(key, snapshot.lsn(), error.to_string()))?;
        let (snapshot, slru) = (snapshot.clone(), BTreeMap::new());
        Ok(Catalogs { snapshot, tablespace, db, map, slru, schemas: None })
    }

    /// The relations that are looked for.
    pub(crate) async fn classes(&mut self, wanted: impl Fn(&Class) -> bool) -> Result<Vec<Class>, ReadError> {
        let file = self.mapped(PG_CLASS)?;
        let mut found = Vec::new();
        self.rows(file, |data| found.extend(class(data).filter(&wanted))).await?;
        Ok(found)
    }

    /// The name of a schema.
    pub(crate) async fn schema_name(&mut self, oid: Oid) -> Result<String, ReadError> {
        let schemas = match self.schemas.take() {
            Some(schemas) => schemas,
            None => self.read_schemas().await?,
        };
        let name = schemas.get(&oid).cloned();
        self.schemas = Some(schemas);
        let missing =
            || bad(Key::rel_map(self.tablespace, self.db), self.snapshot.lsn(), format!("no schema {oid}"));
        name.ok_or_else(missing)
    }

    async fn read_schemas(&mut self) -> Result<BTreeMap<Oid, String>, ReadError> {
        let catalog = self.classes(|class| class.oid == PG_NAMESPACE).await?;
        let file = match catalog.first() {
            Some(class) => class.file,
            None => self.mapped(PG_NAMESPACE)?,
        };
        let mut schemas = BTreeMap::new();
        self.rows(file, |data| schemas.extend(number(data, 0).zip(name(data, 4)))).await?;
        Ok(schemas)
    }

    /// Where a relation's file lies.
    pub(crate) fn node(&self, class: &Class) -> RelNode {
        let spc = if class.tablespace == 0 { self.tablespace } else { class.tablespace };
        RelNode { spc, db: self.db, rel: class.file }
    }

    /// The columns of each row that a new transaction would see.
    async fn rows(&mut self, file: Oid, mut row: impl FnMut(&[u8])) -> Result<(), ReadError> {
        let node = RelNode { spc: self.tablespace, db: self.db, rel: file };
        let snapshot = self.snapshot.clone();
        let missing = ReadError::NoSuchRelation { node, fork: Fork::Main, lsn: snapshot.lsn() };
        let blocks = snapshot.rel_size(node, Fork::Main).await?.ok_or(missing)?;
        for first in (0..blocks).step_by(BATCH as usize) {
            let pages = snapshot.pages(node, Fork::Main, first, BATCH.min(blocks - first)).await?;
            for page in &pages {
                let page: &Page = page.as_ref().try_into().map_err(|_| {
                    bad(Key::rel_block(node, Fork::Main, first), snapshot.lsn(), "a page of another length")
                })?;
                for tuple in tuples(page) {
                    if self.is_seen(&tuple).await? {
                        row(tuple.data);
                    }
                }
            }
        }
        Ok(())
    }

    /// What has not committed at the LSN has not happened.
    async fn is_seen(&mut self, tuple: &Tuple<'_>) -> Result<bool, ReadError> {
        Ok(self.happened(tuple.made).await? && !self.happened(tuple.deleted).await?)
    }

    async fn happened(&mut self, cause: Cause) -> Result<bool, ReadError> {
        match cause {
            Cause::Done => Ok(true),
            Cause::NotDone => Ok(false),
            Cause::Xid(xid) => self.committed(xid).await,
            Cause::Multi(multi) => match self.updater(multi).await? {
                Some(xid) => self.committed(xid).await,
                None => Ok(false),
            },
        }
    }

    async fn committed(&mut self, xid: Xid) -> Result<bool, ReadError> {
        let page = self.slru_page(Slru::Xact, clog::page_of(xid)).await?;
        Ok(clog::status(&page, xid) == Some(XactStatus::Committed))
    }

    /// The member of a multixact that updated.
    async fn updater(&mut self, multi: u32) -> Result<Option<Xid>, ReadError> {
        let next = self.snapshot.checkpoint().await?;
        let first = self.offset_of(multi).await?;
        let following = multixact::next_multi(multi);
        let end = if following == next.next_multi {
            next.next_multi_offset
        } else {
            self.offset_of(following).await?
        };
        let count = end.wrapping_sub(first);
        if count > MEMBERS_MAX {
            let key = Key::slru_page(Slru::MultiXactOffsets, 0, 0);
            return Err(bad(key, self.snapshot.lsn(), format!("multixact {multi} has {count} members")));
        }
        for at in (0..count).map(|member| first.wrapping_add(member)) {
            let page = self.slru_page(Slru::MultiXactMembers, multixact::member_page(at)).await?;
            let flags = page.get(multixact::member_flag_position(at));
            if flags.is_some_and(|flags| *flags > MULTI_FOR_UPDATE) {
                return Ok(number(&page, multixact::member_position(at)));
            }
        }
        Ok(None)
    }

    async fn offset_of(&mut self, multi: u32) -> Result<u32, ReadError> {
        let page = multixact::offset_page(multi);
        let bytes = self.slru_page(Slru::MultiXactOffsets, page).await?;
        number(&bytes, multixact::offset_position(multi)).ok_or_else(|| {
            let key =
                Key::slru_page(Slru::MultiXactOffsets, page / PAGES_PER_SEGMENT, page % PAGES_PER_SEGMENT);
            bad(key, self.snapshot.lsn(), "a page of another length")
        })
    }

    async fn slru_page(&mut self, slru: Slru, page: u32) -> Result<Bytes, ReadError> {
        if let Some(page) = self.slru.get(&(slru as u32, page)) {
            return Ok(page.clone());
        }
        let (segment, within) = (page / PAGES_PER_SEGMENT, page % PAGES_PER_SEGMENT);
        let bytes = self.snapshot.slru_page(slru, segment, within).await?;
        if self.slru.len() >= SLRU_PAGES {
            self.slru.clear();
        }
        self.slru.insert((slru as u32, page), bytes.clone());
        Ok(bytes)
    }
}

/// The columns up to `relkind` have fixed places (`FormData_pg_class`).
fn class(data: &[u8]) -> Option<Class> {
    Some(Class {
        oid: number(data, 0)?,
        name: name(data, 4)?,
        namespace: number(data, 68)?,
        file: number(data, 88)?,
        tablespace: number(data, 92)?,
        kind: *data.get(115)?,
    })
}

/// `FormData_pg_database`.
fn database(data: &[u8]) -> Option<DatabaseRow> {
    Some(DatabaseRow { oid: number(data, 0)?, name: name(data, 4)?, limit: number(data, 80)?.cast_signed() })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A `name`, in whatever encoding the database has.
fn name(data: &[u8], at: usize) -> Option<String> {
    let bytes = data.get(at..at + NAME)?;
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME);
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}
