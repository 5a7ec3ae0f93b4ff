//! Random bits of a larger store's objects flipped, one at a time: whatever is read then is what it was, or an error that
//! names the object.
//!
//! A real server's pages lie in a base image and in many layers above it. Everything that they say is asked for in questions:
//! 32 blocks of a fork at an LSN, a segment of WAL, what a restore target means, and so on. First every question is asked
//! of the whole store, each with caches of its own, and what it read is kept. After a flip only those questions are asked
//! again that had read that byte: the others would read the same bytes, one after the other, and so come to the same answer.
//! So each flip is judged by all pages, and costs only those that it can reach. Where a timeline opens although its opening read
//! the flipped byte, what it opened must be the same, for that is all that its questions know of the opening. Behind some flips
//! all questions are asked again nevertheless, to see that it is so.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod server;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use server::{Cluster, stopped_at};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use zenith_layers::{CacheOptions, Slru};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode};
use zenith_reader::{
    BlockRange, ReaderCaches, ReaderOptions, RedoSource, Snapshot, Target, Timeline, TimelineRef,
};
use zenith_redo::RedoOptions;
use zenith_store::{Env, Store};
use zenith_testkit::env::mix;
use zenith_testkit::flips::{Flip, FlippingStore, Reads};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, give_to_server};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Blocks of one question.
const BLOCKS: u32 = 32;
/// Flips that are judged at the same time.
const AT_ONCE: usize = 3;
/// Behind one flip in so many all questions are asked.
const ALL_BEHIND_ONE_IN: usize = 1000;

const BEFORE: &str = "
    CREATE TABLE old AS SELECT i, md5(i::text) || md5((i * 7)::text) AS t FROM generate_series(1, 30000) i;
    ALTER TABLE old ADD PRIMARY KEY (i);
    DO $$ BEGIN FOR i IN 1..120 LOOP
        EXECUTE format('CREATE TABLE small_%s AS SELECT j, j * %s AS k FROM generate_series(1, 300) j', i, i);
    END LOOP; END $$;
";
const FIRST: &str = "
    UPDATE old SET t = t || 'x' WHERE i % 7 = 0;
    CREATE TABLE grown (i int PRIMARY KEY, t text);
    INSERT INTO grown SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, 20000) i;
    CREATE INDEX ON grown (t);
    DO $$ BEGIN FOR i IN 1..60 LOOP EXECUTE format('INSERT INTO small_%s SELECT 1, 2', i); END LOOP; END $$;
    SELECT pg_create_restore_point('first');
";
const SECOND: &str = "
    DELETE FROM old WHERE i > 20000 OR i % 3 = 0;
    VACUUM old;
    UPDATE grown SET t = md5(t) WHERE i % 5 = 0;
    CREATE DATABASE copied STRATEGY file_copy TEMPLATE template1;
    DO $$ BEGIN FOR i IN 1..30 LOOP EXECUTE format('DROP TABLE small_%s', i); END LOOP; END $$;
    TRUNCATE small_40;
    BEGIN; INSERT INTO grown VALUES (-1, 'prepared'); PREPARE TRANSACTION 'pending';
    SELECT pg_create_restore_point('second');
";

/// A server's pages in a base image, many layers and its WAL.
async fn larger_store() -> Cluster {
    let options = PgOptions::default()
        .initdb("--data-checksums")
        .initdb("--wal-segsize=1")
        .conf("autovacuum = off")
        .conf("max_wal_size = 4GB")
        .conf("wal_keep_size = 4GB")
        .conf("max_prepared_transactions = 5");
    let pg = Pg::start_new(&options);
    pg.script("postgres", BEFORE);
    pg.stop(StopMode::Fast);
    let cluster = Cluster::of(&pg).await;
    pg.start();
    pg.script("postgres", FIRST);
    let middle = pg.sql("SELECT pg_current_wal_insert_lsn()");
    pg.script("postgres", SECOND);
    pg.stop(StopMode::Fast);
    give_to_server(pg.data());
    cluster.archive(pg.data()).await;
    cluster.slice(middle.parse().unwrap()).await;
    cluster.slice(stopped_at(pg.data())).await;
    cluster
}

/// One thing that a store says.
#[derive(Clone, PartialEq, Debug)]
enum Question {
    Means(Target),
    RestorePoints,
    Wal(u64),
    /// What is asked of a snapshot.
    At(Lsn, Part),
}

#[derive(Clone, PartialEq, Debug)]
enum Part {
    States,
    SmallFiles,
    SegmentHead,
    Relations(u32, u32),
    Blocks(Vec<BlockRange>),
    Slru(Slru),
}

/// An answer is compared by its hash, and as long as it is.
type Answer = (u64, usize);

#[derive(Default)]
struct Saying {
    hasher: DefaultHasher,
    pages: usize,
}

impl Saying {
    fn say(&mut self, what: &dyn std::fmt::Debug) {
        format!("{what:?}").hash(&mut self.hasher);
    }

    fn pages(&mut self, bytes: &[u8]) {
        bytes.hash(&mut self.hasher);
        self.pages += bytes.len() / BLCKSZ;
    }

    fn answer(self) -> Answer {
        (self.hasher.finish(), self.pages)
    }
}

async fn ask(timeline: &Timeline, question: &Question) -> Result<Answer, Failure> {
    let mut said = Saying::default();
    match question {
        Question::Means(target) => said.say(&timeline.resolve(target).await?),
        Question::RestorePoints => said.say(&timeline.restore_points(10).await?),
        Question::Wal(segment) => match timeline.raw_wal(1, *segment).await? {
            Some(bytes) => said.pages(&bytes),
            None => said.say(&"there is none"),
        },
        Question::At(..) => unreachable!("it is asked of a snapshot"),
    }
    Ok(said.answer())
}

async fn ask_at(at: &Snapshot, part: &Part) -> Result<Answer, Failure> {
    let mut said = Saying::default();
    match part {
        Part::States => {
            said.say(&(at.databases(), at.checkpoint().await?, at.parameters().await?, at.next_xid().await?));
            said.say(&(at.two_phase().await?, at.tablespaces().await?, at.repl_origins().await?));
            for (spc, db) in places(at) {
                said.say(&at.rel_map(spc, db).await?);
            }
        }
        Part::SmallFiles => said.say(&at.small_files().await?),
        Part::SegmentHead => said.pages(&at.segment_head().await?),
        Part::Relations(spc, db) => said.say(&at.relations(*spc, *db).await?),
        Part::Blocks(ranges) => at.page_ranges(ranges).await?.iter().for_each(|page| said.pages(page)),
        Part::Slru(slru) => {
            for (segment, pages) in at.slru_segments(*slru).await? {
                said.say(&(segment, pages));
                said.pages(&at.slru_segment(*slru, segment).await?);
            }
        }
    }
    Ok(said.answer())
}

fn places(at: &Snapshot) -> Vec<(u32, u32)> {
    let databases = at.databases().into_iter().map(|entry| (entry.spc, entry.db));
    databases.chain([(1664, 0)]).collect()
}

/// How the store is read: every opening with caches of its own, redo in processes that all share.
struct Reading {
    objects: Store,
    redo: RedoSource,
}

impl Reading {
    async fn open(&self, flip: Option<Flip>) -> (Result<Timeline, Failure>, Reads) {
        let flipping = FlippingStore::new(Arc::clone(&self.objects.objects), flip);
        let reads = flipping.reads();
        let options = ReaderOptions {
            env: Env::system(),
            caches: ReaderCaches::new(CacheOptions::default(), 16 << 20),
            redo: self.redo.clone(),
            work_dir: std::env::temp_dir(),
            version: None,
            rows: ReaderOptions::new("").rows,
        };
        let name = TimelineRef::Name("main".to_owned());
        let timeline = Timeline::open(&self.objects.wrapped(|_| flipping), "main", &name, options).await;
        (timeline.map_err(Failure::from), reads)
    }
}

/// What an opening came to: all that questions know of it.
fn opened(timeline: &Timeline) -> String {
    format!("{:?} {:?} {:?}", timeline.identity(), timeline.root(), timeline.entries())
}

/// All questions with their answers, and by which bytes they are reached.
struct Known {
    reading: Reading,
    opened: String,
    questions: Vec<(Question, Answer)>,
    /// By object: the bytes, and the number of the question that read them.
    readers: HashMap<Path, Vec<(Range<u64>, usize)>>,
    objects: Vec<ObjectMeta>,
}

impl Known {
    async fn of(cluster: &Cluster) -> Known {
        let objects: Vec<ObjectMeta> = cluster.store.objects.list(None).try_collect().await.unwrap();
        let reading =
            Reading { objects: cluster.store.clone(), redo: RedoSource::lazy(RedoOptions::default()) };
        let timeline = reading.open(None).await.0.unwrap();
        let opened = opened(&timeline);
        let mut known = Known { reading, opened, questions: vec![], readers: HashMap::new(), objects };
        for question in all_questions(&timeline).await {
            known.learn(question).await;
        }
        known
    }

    /// Asks of the whole store, with nothing in any cache.
    async fn learn(&mut self, question: Question) {
        let (timeline, reads) = self.reading.open(None).await;
        let timeline = timeline.unwrap();
        // The opening is judged by what it opened.
        reads.take();
        let answer = match &question {
            Question::At(lsn, part) => ask_at(&timeline.snapshot(*lsn).await.unwrap(), part).await,
            question => ask(&timeline, question).await,
        };
        let number = self.questions.len();
        for (object, range) in reads.take() {
            self.readers.entry(object).or_default().push((range, number));
        }
        self.questions.push((question, answer.unwrap()));
    }

    /// The questions that read this byte, by number.
    fn reached(&self, flip: &Flip) -> Vec<usize> {
        let readers = self.readers.get(&flip.object).map_or(&[][..], Vec::as_slice);
        let mut numbers: Vec<usize> = readers
            .iter()
            .filter(|(range, _)| range.contains(&flip.byte))
            .map(|(_, number)| *number)
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// A wrong answer, and an error that does not name the object, fail the test, and so does an error where the byte was not
    /// read: `all` questions are asked then.
    async fn judge(&self, flip: Flip, all: bool) -> Judged {
        let mut judged = Judged::default();
        let timeline = match self.reading.open(Some(flip.clone())).await.0 {
            Ok(timeline) => timeline,
            Err(error) => {
                judged.noticed(&flip, &error);
                return judged;
            }
        };
        assert!(opened(&timeline) == self.opened, "{flip:?} opens as something else");
        let mut snapshots: BTreeMap<Lsn, Option<Snapshot>> = BTreeMap::new();
        let reached = self.reached(&flip);
        let numbers = if all { (0..self.questions.len()).collect() } else { reached.clone() };
        for number in numbers {
            let (question, whole) = &self.questions[number];
            let answer = match question {
                Question::At(lsn, part) => {
                    if !snapshots.contains_key(lsn) {
                        let loaded = timeline
                            .snapshot(*lsn)
                            .await
                            .map_err(|error| judged.noticed(&flip, &error.into()));
                        snapshots.insert(*lsn, loaded.ok());
                    }
                    // Without a snapshot there is no answer, which is noticed already.
                    let Some(Some(at)) = snapshots.get(lsn) else { continue };
                    ask_at(at, part).await
                }
                question => ask(&timeline, question).await,
            };
            judged.asked += 1;
            match answer {
                Ok(answer) => assert!(answer == *whole, "{flip:?}: a wrong answer to {question:?}"),
                Err(error) => {
                    assert!(reached.contains(&number), "{flip:?} reaches {question:?}: {error}");
                    judged.noticed(&flip, &error);
                }
            }
        }
        judged
    }

    /// The flips of a seed: one half of them anywhere in the bytes of the store, so that large objects have more of them, and
    /// one half anywhere among its objects, so that small ones have some, too.
    fn draw(&self, seed: u64, count: usize) -> Vec<Flip> {
        let total: u64 = self.objects.iter().map(|object| object.size).sum();
        let draw = |number: usize| {
            let dice = |which: u64, below: u64| mix(mix(seed) ^ (number as u64 * 4 + which)) % below;
            let any = &self.objects[dice(0, self.objects.len() as u64) as usize];
            let (mut object, mut byte) = (any, dice(1, any.size));
            if number.is_multiple_of(2) {
                byte = dice(1, total);
                for candidate in &self.objects {
                    object = candidate;
                    if byte < candidate.size {
                        break;
                    }
                    byte -= candidate.size;
                }
            }
            Flip { object: object.location.clone(), byte, bit: dice(2, 8) as u8 }
        };
        (0..count).map(draw).collect()
    }
}

/// Everything that can be asked: at the end of the base image, in the middle and at the end.
async fn all_questions(timeline: &Timeline) -> Vec<Question> {
    let targets = [Target::Name("first".to_owned()), Target::Name("second".to_owned()), Target::Latest];
    let mut lsns = vec![timeline.ranges()[0].from];
    let mut questions = vec![Question::RestorePoints];
    for target in targets {
        lsns.push(timeline.resolve(&target).await.unwrap().lsn);
        questions.push(Question::Means(target));
    }
    let middle = timeline.resolve(&Target::Lsn(lsns[1])).await.unwrap().last_commit.unwrap();
    questions.extend([Target::Time(middle.time), Target::Xid(middle.xid)].map(Question::Means));
    let size = timeline.segment_size();
    questions.extend((1..=size.segment_of(timeline.end().unwrap())).map(Question::Wal));
    for lsn in lsns {
        let at = timeline.snapshot(lsn).await.unwrap();
        let mut parts = vec![Part::States, Part::SmallFiles, Part::SegmentHead];
        parts.extend(Slru::ALL.map(Part::Slru));
        for (spc, db) in places(&at) {
            parts.push(Part::Relations(spc, db));
            parts.extend(block_questions(&at, spc, db).await);
        }
        questions.extend(parts.into_iter().map(|part| Question::At(lsn, part)));
    }
    questions
}

/// All blocks of a database, so many a question: small forks share one.
async fn block_questions(at: &Snapshot, spc: u32, db: u32) -> Vec<Part> {
    let (mut parts, mut open, mut room) = (Vec::new(), Vec::new(), BLOCKS);
    for relation in at.relations(spc, db).await.unwrap() {
        let (node, fork, blocks): (RelNode, Fork, u32) = (relation.node, relation.fork, relation.blocks);
        let mut from = 0;
        while from < blocks {
            let count = (blocks - from).min(room);
            open.push(BlockRange { node, fork, from, count });
            (from, room) = (from + count, room - count);
            if room == 0 {
                parts.push(Part::Blocks(std::mem::take(&mut open)));
                room = BLOCKS;
            }
        }
    }
    if !open.is_empty() {
        parts.push(Part::Blocks(open));
    }
    parts
}

/// What came of one flip, or of many.
#[derive(Default, Debug)]
struct Judged {
    asked: usize,
    errors: usize,
}

impl Judged {
    fn noticed(&mut self, flip: &Flip, error: &Failure) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        let name = flip.object.filename().unwrap();
        assert!(text.contains(name), "{flip:?}: an error that does not name the object: {text}");
        self.errors += 1;
    }
}

/// What lies in a timeline's folder under its own name, or beside the timelines.
fn kind(object: &Path) -> String {
    let parts: Vec<_> = object.parts().collect();
    let at = if parts.get(1).is_some_and(|part| part.as_ref() == "timelines") { 3 } else { 1 };
    parts.get(at).map_or(String::new(), |part| part.as_ref().to_owned())
}

/// Judges so many flips of a seed.
async fn flip(seed: u64, count: usize) {
    let cluster = larger_store().await;
    let known = Arc::new(Known::of(&cluster).await);
    let pages: usize = known.questions.iter().map(|(_, (_, pages))| *pages).sum();
    let bytes: u64 = known.objects.iter().map(|object| object.size).sum();
    let (objects, questions) = (known.objects.len(), known.questions.len());
    println!("{objects} objects, {bytes} bytes; {questions} questions, {pages} pages");
    assert!(objects > 30 && pages > 10_000, "{objects} objects, {pages} pages: this is no larger store");

    let judge = |(number, flip): (usize, Flip)| {
        let known = Arc::clone(&known);
        let all = number % ALL_BEHIND_ONE_IN == 0;
        let judged = tokio::spawn(async move { known.judge(flip, all).await });
        async move { judged.await.unwrap() }
    };
    let flips = known.draw(seed, count);
    let all: Vec<Judged> = futures::stream::iter(flips.clone().into_iter().enumerate())
        .map(judge)
        .buffered(AT_ONCE)
        .collect()
        .await;
    let noticed = all.iter().filter(|judged| judged.errors > 0).count();
    let asked: usize = all.iter().map(|judged| judged.asked).sum();
    println!("{count} flips, {noticed} noticed, {} harmless, {asked} questions asked again", count - noticed);
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (flip, judged) in flips.iter().zip(&all) {
        let kind = kinds.entry(kind(&flip.object)).or_default();
        *kind = (kind.0 + 1, kind.1 + usize::from(judged.errors > 0));
    }
    kinds.iter().for_each(|(kind, (flips, noticed))| println!("{kind}: {flips} flips, {noticed} noticed"));
    assert!(noticed > count / 2, "{noticed} of {count}");
    // Nearly every byte of these is looked at, whatever is asked. A few flips say little of a share.
    let least = if count < 1000 { 7 } else { 9 };
    for kind in ["layers", "wal"] {
        let (flips, noticed) = kinds.get(kind).copied().unwrap_or_default();
        assert!(flips > 0 && noticed * 10 > flips * least, "{kind}: {noticed} of {flips}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_random_flips_in_a_larger_store_are_harmless_or_noticed() {
    flip(1, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make flips"]
async fn ten_thousand_random_flips_in_a_larger_store_are_harmless_or_noticed() {
    flip(2, 10_000).await;
}
