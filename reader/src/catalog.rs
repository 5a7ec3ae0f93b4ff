//! System catalogs at an LSN, read from their pages without a server: the rows that a new transaction would see there.

use crate::error::ReadError;
use crate::snapshot::{Snapshot, bad};
use crate::visibility::Visibility;
use std::collections::BTreeMap;
use zenith_layers::Key;
use zenith_pgformat::catalog::{ClassRow, DatabaseRow, NamespaceRow, PG_CLASS, PG_DATABASE, PG_NAMESPACE};
use zenith_pgformat::heap::tuples;
use zenith_pgformat::rel::GLOBAL_TABLESPACE;
use zenith_pgformat::relmap::RelMap;
use zenith_pgformat::{Fork, Oid, Page, RelNode};

/// Blocks that are read at once.
const BATCH: u32 = 128;

/// The catalogs of one database at one LSN.
pub(crate) struct Catalogs {
    snapshot: Snapshot,
    /// The database's own tablespace, where its relation map lies.
    tablespace: Oid,
    db: Oid,
    map: RelMap,
    visibility: Visibility,
    /// Names of schemas, once somebody asks for one.
    schemas: Option<BTreeMap<Oid, String>>,
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
        self.rows(file, |data| {
            found = found.take().or(DatabaseRow::decode(data).filter(|row| row.oid == db))
        })
        .await?;
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
        let (snapshot, visibility) = (snapshot.clone(), Visibility::at(snapshot));
        Ok(Catalogs { snapshot, tablespace, db, map, visibility, schemas: None })
    }

    /// The relations that are looked for.
    pub(crate) async fn classes(
        &mut self,
        wanted: impl Fn(&ClassRow) -> bool,
    ) -> Result<Vec<ClassRow>, ReadError> {
        let file = self.mapped(PG_CLASS)?;
        let mut found = Vec::new();
        self.rows(file, |data| found.extend(ClassRow::decode(data).filter(&wanted))).await?;
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
        self.rows(file, |data| schemas.extend(NamespaceRow::decode(data).map(|row| (row.oid, row.name))))
            .await?;
        Ok(schemas)
    }

    /// Where a relation's file lies.
    pub(crate) fn node(&self, class: &ClassRow) -> RelNode {
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
                    if self.visibility.is_seen(&tuple).await? {
                        row(tuple.data);
                    }
                }
            }
        }
        Ok(())
    }
}
