//! How fast layers are written and searched, and what their index costs. A plain program:
//! `cargo bench -p zenith-layers`, with `-- --keep DIR` the layers are left in that folder for other tools.

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use uuid::Uuid;
use zenith_layers::{
    CacheOptions, Key, KeyRange, LayerCaches, LayerSet, LayerStore, LayerWriter, ReadMode, Row, Source,
    Value, WriterOptions, store_layer,
};
use zenith_manifest::LayerEntry;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::{Fork, Lsn, RelNode};
use zenith_store::{ClusterPaths, CountingStore, Env, TimelineId, TimelinePaths};

const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

/// Numbers that repeat from run to run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }

    /// Compresses about threefold, as heap pages do.
    fn bytes(&mut self, length: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(length + 24);
        while bytes.len() < length {
            let id = self.next(100_000) as u32;
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.extend_from_slice(&[0, 0, 2, 0, 2, 8, 24, 0]);
            bytes.extend_from_slice(format!("{id:012}").as_bytes());
        }
        bytes.truncate(length);
        bytes.into()
    }
}

fn image(numbers: &mut Numbers, pages: u32) -> Vec<Row> {
    let row = |block| Row {
        key: Key::rel_block(NODE, Fork::Main, block),
        lsn: Lsn(8),
        value: Value::Page(numbers.bytes(8192)),
        source: Source::NONE,
    };
    (0..pages).map(row).collect()
}

/// About eight records a block, as a range of WAL under pgbench has them.
fn delta(numbers: &mut Numbers, rows: u32) -> Vec<Row> {
    let mut all: Vec<Row> = (0..rows)
        .map(|n| Row {
            key: Key::rel_block(NODE, Fork::Main, numbers.next(u64::from(rows / 8)) as u32),
            lsn: Lsn(0x1000_0000 + u64::from(n) * 120),
            value: Value::Record(numbers.bytes(60 + (n % 5) as usize * 30)),
            source: Source { rmgr: RmgrId(10), info: (n % 4 * 16) as u8, xid: n / 6, length: 80 + n % 90 },
        })
        .collect();
    all.sort_by_key(|row| (row.key, row.lsn));
    all
}

struct Bench {
    env: Env,
    objects: Arc<CountingStore>,
    paths: TimelinePaths,
}

impl Bench {
    fn set(&self, entry: &LayerEntry) -> Result<(LayerSet, LayerCaches), Box<dyn Error>> {
        let caches = LayerCaches::new(CacheOptions::default());
        let store = Arc::clone(&self.objects) as Arc<dyn ObjectStore>;
        let store = LayerStore::new(store, self.paths.clone(), caches.clone());
        Ok((LayerSet::new(store, [entry.clone()], None)?, caches))
    }

    async fn run(&self, name: &str, options: WriterOptions, rows: &[Row]) -> Result<(), Box<dyn Error>> {
        let payload: usize = rows.iter().map(|row| row.value.payload().len()).sum();
        let start = self.env.clock.elapsed();
        let mut writer = LayerWriter::new(options)?;
        for row in rows {
            writer.push(row)?;
        }
        let layer = writer.finish()?;
        let seconds = (self.env.clock.elapsed() - start).as_secs_f64();
        let entry = store_layer(&*self.objects, &self.paths, &self.env, &layer).await?;
        println!("{name}: {} rows, {} bytes of payload", rows.len(), payload);
        println!("  written  {:.0} MB/s", payload as f64 / seconds / 1_048_576.0);
        println!(
            "  stored   {} bytes, ratio {:.2}, footer {} bytes, {}",
            entry.bytes,
            payload as f64 / entry.bytes as f64,
            entry.bytes - entry.meta_offset,
            self.paths.layer(entry.id)
        );
        let all = KeyRange { first: Key::MIN, last: Key::MAX };
        let (set, caches) = self.set(&entry)?;
        let start = self.env.clock.elapsed();
        let found = set.history(&[all], Lsn::MAX, ReadMode::Serve).await?;
        let seconds = (self.env.clock.elapsed() - start).as_secs_f64();
        println!(
            "  read     {} keys at once, {:.0} MB/s",
            found.len(),
            payload as f64 / seconds / 1_048_576.0
        );
        println!("  resident {:.1} bytes a row", caches.index_bytes().await as f64 / rows.len() as f64);
        self.points(rows, &entry).await
    }

    /// Lookups of single keys: blocks not cached, then cached.
    async fn points(&self, rows: &[Row], entry: &LayerEntry) -> Result<(), Box<dyn Error>> {
        let (set, _) = self.set(entry)?;
        let mut numbers = Numbers(7);
        let picks: Vec<KeyRange> = (0..500)
            .filter_map(|_| rows.get(numbers.next(rows.len() as u64) as usize))
            .map(|row| KeyRange::one(row.key))
            .collect();
        // Makes all keys resident, and no payload.
        for key in picks.iter().chain(&picks) {
            set.history(&[*key], Lsn(1), ReadMode::Serve).await?;
        }
        for turn in ["first time", "again"] {
            let before = self.objects.counts().snapshot();
            let start = self.env.clock.elapsed();
            for key in &picks {
                black_box(set.history(&[*key], Lsn::MAX, ReadMode::Serve).await?);
            }
            let micros = (self.env.clock.elapsed() - start).as_micros() as usize / picks.len();
            let counts = self.objects.counts().snapshot().since(&before);
            let bytes = counts.bytes_got / picks.len() as u64;
            println!(
                "  lookup   {micros} microseconds, {} GETs for {}, {bytes} bytes each, {turn}",
                counts.gets,
                picks.len()
            );
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let keep = arguments.iter().position(|argument| argument == "--keep");
    let temporary = tempfile::tempdir()?;
    let folder = match keep.and_then(|keep| arguments.get(keep + 1)) {
        Some(folder) => std::path::PathBuf::from(folder),
        None => temporary.path().to_owned(),
    };
    std::fs::create_dir_all(&folder)?;
    let local: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder)?);
    let timeline = TimelineId(Uuid::nil());
    let bench = Bench {
        env: Env::system(),
        objects: Arc::new(CountingStore::new(local)),
        paths: ClusterPaths::new(&Path::default(), "bench").timeline(timeline),
    };
    let mut numbers = Numbers(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let pages = image(&mut numbers, 16_384);
        bench.run("image layer", WriterOptions::image(1, Lsn(8), None), &pages).await?;
        let records = delta(&mut numbers, 800_000);
        bench.run("delta layer", WriterOptions::delta(1, Lsn(8), Lsn::MAX), &records).await
    })
}
