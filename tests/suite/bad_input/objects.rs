//! Every object of a store missing, damaged or cut: a command that needs it names it and changes nothing; one that does
//! not need it answers as ever. No command ever gives another answer than with the store whole. WAL: `segments`.

use super::world::{Ran, World, restore, restore_wal, run, wal_file};
use crate::harness::TestStore;
use std::collections::BTreeMap;
use zenith_testkit::on_each_store;
use zenith_testkit::store::Kind;

on_each_store!(every_object_is_missed_by_name, one_flipped_bit_never_makes_another_page);

/// What happens to an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Damage {
    Missing,
    /// One bit in the middle, and one in every 997 bytes of a long object.
    Flipped,
    /// The second half is gone.
    Cut,
}

impl Damage {
    fn apply(self, store: &TestStore, object: &str, whole: &[u8]) {
        match self {
            Damage::Missing => store.delete(object),
            Damage::Flipped => {
                let mut flipped = whole.to_vec();
                let middle = flipped.len() / 2;
                flipped[middle] ^= 1;
                flipped.iter_mut().skip(4000).step_by(997).for_each(|byte| *byte ^= 0x40);
                store.put(object, &flipped);
            }
            Damage::Cut => store.put(object, &whole[..whole.len() / 2]),
        }
    }
}

/// What a command is asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Ask {
    Status,
    Layers,
    /// A page that every run of the slicer has changed, where WAL is sliced.
    Page,
    /// The same page where WAL is only archived.
    PageUnsliced,
    Restore,
    /// To a restore point.
    RestoreNamed,
    Replay,
    RestoreWal,
    PushWal,
    Slice,
}

/// All of them.
const EVERYTHING: [Ask; 10] = [
    Ask::Status,
    Ask::Layers,
    Ask::Page,
    Ask::PageUnsliced,
    Ask::Restore,
    Ask::RestoreNamed,
    Ask::Replay,
    Ask::RestoreWal,
    Ask::PushWal,
    Ask::Slice,
];

impl Ask {
    fn of(self, world: &World, store: &TestStore) -> Ran {
        match self {
            Ask::Status => run(store, "zenith", &["status", "--timeline", "main"]),
            Ask::Layers => run(store, "zenith", &["layers"]),
            Ask::Page => world.page(store, &world.sliced),
            Ask::PageUnsliced => world.page(store, &world.end),
            Ask::Restore => restore(store, &["--lsn", &world.sliced]).1,
            Ask::RestoreNamed => restore(store, &["--name", "round 0"]).1,
            Ask::Replay => restore(store, &["--replay"]).1,
            Ask::RestoreWal => {
                let (ran, written) = restore_wal(store, &world.segments[0].name);
                assert_eq!(ran.code == Some(0), written.is_some(), "{ran:?}");
                ran
            }
            Ask::PushWal => {
                let (_home, path) = wal_file(&world.next.name, &world.next.content);
                run(store, "zenith_push", &["wal", &path])
            }
            Ask::Slice => run(store, "zenith_slicedice", &[]),
        }
    }

    /// Whether what it prints is the same each time.
    fn prints_the_same(self) -> bool {
        matches!(self, Ask::Layers | Ask::Page | Ask::PageUnsliced)
    }

    fn changes_nothing(self) -> bool {
        !matches!(self, Ask::PushWal | Ask::Slice)
    }

    fn code_of_failure(self) -> i32 {
        if self == Ask::RestoreWal { 255 } else { 1 }
    }
}

/// One object, and which commands need it.
struct Row {
    object: String,
    damage: Vec<Damage>,
    /// They fail.
    needed_by: Vec<Ask>,
    /// What they say then besides.
    words: Vec<String>,
    /// They are asked too, and do as ever.
    not_needed_by: Vec<Ask>,
}

impl Row {
    fn new(object: String, needed_by: &[Ask], not_needed_by: &[Ask]) -> Row {
        let name = object.rsplit('/').next().unwrap_or(&object).to_owned();
        let damage = vec![Damage::Missing, Damage::Flipped, Damage::Cut];
        let words = vec![name, "copy of the store".to_owned()];
        Row { object, damage, needed_by: needed_by.to_vec(), words, not_needed_by: not_needed_by.to_vec() }
    }

    fn only(mut self, damage: &[Damage]) -> Row {
        self.damage = damage.to_vec();
        self
    }

    fn saying(mut self, words: &[&str]) -> Row {
        self.words = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }
}

fn rows(world: &World, store: &TestStore) -> Vec<Row> {
    const DAMAGED: [Damage; 2] = [Damage::Flipped, Damage::Cut];
    let timeline = &world.timeline;
    let name = "main/names/main/00000000000000000001".to_owned();
    let readers = EVERYTHING.iter().copied().filter(|ask| *ask != Ask::PushWal).collect::<Vec<_>>();
    let mut rows = vec![
        Row::new(name.clone(), &EVERYTHING, &[]).only(&DAMAGED),
        Row::new(name.clone(), &readers, &[])
            .only(&[Damage::Missing])
            .saying(&["no timeline named \"main\""]),
        Row::new(name, &[Ask::PushWal], &[]).only(&[Damage::Missing]),
        Row::new(format!("{timeline}identity"), &EVERYTHING, &[]),
    ];

    let manifests = store.list(&format!("{timeline}manifest/"));
    let (newest, older) = manifests.split_last().expect("manifest versions");
    let users = [
        Ask::Status,
        Ask::Layers,
        Ask::Page,
        Ask::PageUnsliced,
        Ask::Restore,
        Ask::RestoreNamed,
        Ask::Replay,
        Ask::Slice,
    ];
    rows.push(Row::new(newest.clone(), &users, &[Ask::RestoreWal, Ask::PushWal]));
    // Nothing leads over a version in the middle.
    let reading = [Ask::Status, Ask::Layers, Ask::Page, Ask::Slice];
    rows.push(Row::new(older[older.len() / 2].clone(), &[], &reading));

    let kind_of = world.layer_kinds(store);
    let mut layers = store.list(&format!("{timeline}layers/"));
    let events: Vec<String> = layers.extract_if(.., |layer| kind_of[layer] == "events").collect();
    let users = [Ask::Page, Ask::PageUnsliced, Ask::Restore, Ask::RestoreNamed, Ask::Replay, Ask::Slice];
    let others = [Ask::Status, Ask::Layers, Ask::RestoreWal];
    rows.extend(layers.into_iter().map(|layer| Row::new(layer, &users, &others)));
    let others = [Ask::Status, Ask::Layers, Ask::Page, Ask::Slice];
    rows.extend(events.into_iter().map(|layer| Row::new(layer, &[Ask::RestoreNamed], &others)));

    let base = format!("{timeline}base/");
    let users = [Ask::Restore, Ask::RestoreNamed, Ask::Replay];
    rows.push(Row::new(store.only(&base, "/files.zst"), &users, &[Ask::Layers, Ask::Page, Ask::Slice]));
    // The archive has that WAL, too.
    rows.push(
        Row::new(store.only(&base, &format!("{}.zst", world.base_segment)), &[Ask::Replay], &[Ask::Page])
            .only(&DAMAGED),
    );
    rows
}

fn every_object_is_missed_by_name(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let healthy: BTreeMap<Ask, Vec<u8>> = EVERYTHING
        .into_iter()
        .filter(|ask| ask.prints_the_same())
        .map(|ask| (ask, ask.of(world, &store).succeeds().stdout))
        .collect();
    for row in rows(world, &store) {
        let whole = store.get(&row.object);
        for damage in &row.damage {
            damage.apply(&store, &row.object, &whole);
            let before = store.list("");
            let mut asks: Vec<(Ask, bool)> = row.needed_by.iter().map(|ask| (*ask, true)).collect();
            asks.extend(row.not_needed_by.iter().map(|ask| (*ask, false)));
            // Those that may change the store come last.
            asks.sort_by_key(|(ask, _)| !ask.changes_nothing());
            for (ask, is_needed) in asks {
                println!(
                    "{} {damage:?}: {ask:?} {}",
                    row.object,
                    if is_needed { "fails" } else { "does as ever" }
                );
                let ran = ask.of(world, &store);
                if is_needed {
                    let words: Vec<&str> = row.words.iter().map(String::as_str).collect();
                    ran.ends(ask.code_of_failure(), &words);
                } else {
                    let same = |whole: &Vec<u8>| *whole == ran.stdout;
                    assert!(healthy.get(&ask).is_none_or(same), "another answer: {}", ran.text());
                    ran.succeeds();
                }
                if ask.changes_nothing() {
                    assert_eq!(store.list(""), before, "{ask:?} changed the store");
                } else if is_needed {
                    world.lost_nothing(&store, &row.object);
                }
            }
            world.reset(&store);
        }
    }
    Ask::Slice.of(world, &store).succeeds();
    let sliced = Ask::PageUnsliced.of(world, &store).succeeds();
    assert!(sliced.stdout == healthy[&Ask::PageUnsliced], "slicing changed a page");
}

/// A flip in a part that a command does not read is harmless; any other is named. A page is never another one.
fn one_flipped_bit_never_makes_another_page(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let page = Ask::Page.of(world, &store).succeeds().stdout;
    let mut named = 0;
    for layer in store.list(&format!("{}layers/", world.timeline)) {
        let whole = store.get(&layer);
        // The last one lies in the footer, which every reader needs.
        for at in (0..6).map(|part| whole.len() * part / 6 + part).chain([whole.len() - 20]) {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 1 << (at % 8);
            store.put(&layer, &flipped);
            let ran = Ask::Page.of(world, &store);
            if ran.code == Some(0) {
                assert!(ran.stdout == page, "byte {at} of {layer}: another page");
            } else {
                ran.fails(&[&layer]);
                named += 1;
            }
        }
        store.put(&layer, &whole);
    }
    assert!(named >= world.layers().len() / 2, "{named} flips were met");
    assert!(Ask::Page.of(world, &store).succeeds().stdout == page, "the page as before");
}
