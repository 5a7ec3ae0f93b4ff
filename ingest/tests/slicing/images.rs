//! Base images: what confirms them, and what is refused while they are built.

use crate::handmade::*;
use crate::support::*;
use zenith_ingest::error::IngestError;
use zenith_layers::Key;
use zenith_manifest::{BaseKind, Change};
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::{Lsn, page};

#[tokio::test]
async fn an_image_that_is_registered_behind_is_confirmed_by_the_archived_wal() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 5).await;
    wal.commits_up_to(3);
    let redo = wal.position();
    let checkpoint = wal.writer.append(RmgrId::XLOG, NOOP, 0, &[0; 8]).lsn;
    wal.commits_up_to(4);
    let end = wal.writer.append(RmgrId::XLOG, BACKUP_END, 0, &redo.0.to_le_bytes()).end;
    let false_redo = wal.position();
    let false_checkpoint = wal.writer.append(RmgrId::XLOG, NOOP, 0, &[0; 8]).lsn;
    wal.commits_up_to(5);
    let segments = wal.segments();
    archive(&timeline, &segments, &[2, 3, 4, 5]).await;
    run(&timeline).await.expect("sliced");

    register(&timeline, BaseKind::Online, redo, checkpoint, end).await;
    let of_another_server = Lsn(false_checkpoint.0 + 4000);
    register(&timeline, BaseKind::Online, false_redo, false_checkpoint, of_another_server).await;
    let report = run(&timeline).await.expect("nothing new");
    let root = timeline.layers().await.0;
    assert_eq!(report.confirmed, [root.bases[1].id]);
    let confirmed: Vec<bool> = root.bases.iter().map(|base| base.confirmed).collect();
    assert_eq!(confirmed, [true, true, false], "the third image's end is in nobody's WAL");
}

#[tokio::test]
async fn wal_that_does_not_hold_the_end_of_its_image_is_another_servers() {
    let mut wal = Wal::new();
    let timeline = Timeline::new(&control_file(), 6);
    let redo = wal.checkpoint.lsn;
    wal.commits_up_to(3);
    register(&timeline, BaseKind::Online, redo, redo, Lsn(wal.position().0 - 100_000)).await;
    archive(&timeline, &wal.segments(), &[2, 3]).await;
    let error = run(&timeline).await.expect_err("no end");
    assert!(matches!(error, IngestError::BaseEndNotMet { .. }), "{error}");
    assert!(!timeline.layers().await.0.bases[0].confirmed);
}

#[tokio::test]
async fn a_page_that_nobody_writes_and_that_fails_its_checksum_is_refused_by_name() {
    let timeline = Timeline::new(&control_file(), 12);
    let mut sound = [0u8; 8192];
    sound[12..14].copy_from_slice(&24u16.to_le_bytes());
    sound[14..16].copy_from_slice(&8192u16.to_le_bytes());
    sound[16..18].copy_from_slice(&8192u16.to_le_bytes());
    sound[18..20].copy_from_slice(&(8192u16 | 4).to_le_bytes());
    page::set_lsn(&mut sound, Lsn(0x100));
    let control = ControlFile { data_checksum_version: 1, ..control_file() };
    let builder = |kind| timeline.builder(kind, &control, Lsn(0x1000), Lsn(0x1000));
    let mut good = sound;
    page::set_checksum(&mut good, 131_072 + 1);
    let file = [[0; 8192], good].concat();
    builder(BaseKind::Online).add_file("base/5/16384.1", 0o600, &file).await.expect("sound");

    let mut damaged = file.clone();
    damaged[8192 + 4000] ^= 1;
    let error =
        builder(BaseKind::Online).add_file("base/5/16384.1", 0o600, &damaged).await.expect_err("damaged");
    let said = error.to_string();
    assert!(said.contains("base/5/16384.1") && said.contains("131073"), "{said}");

    // Changed since the backup began: perhaps half written, and the WAL brings it whole.
    let mut torn: [u8; 8192] = damaged[8192..].try_into().expect("a page");
    page::set_lsn(&mut torn, Lsn(0x2000));
    let torn = [[0; 8192], torn].concat();
    builder(BaseKind::Online).add_file("base/5/16384.1", 0o600, &torn).await.expect("being written");
    assert!(builder(BaseKind::Directory).add_file("base/5/16384.1", 0o600, &torn).await.is_err());
}

#[tokio::test]
async fn an_image_without_its_control_file_or_of_another_cluster_is_refused() {
    let timeline = Timeline::new(&control_file(), 13);
    let builder = || timeline.builder(BaseKind::Directory, &control_file(), Lsn(0x1000), Lsn(0x1000));
    let empty = builder().finish(Lsn(0x2000), "").await.expect_err("empty");
    assert!(empty.to_string().contains("pg_control"), "{empty}");
    let other = ControlFile { system_identifier: 5, ..control_file() }.encode();
    let error = builder().add_file("global/pg_control", 0o600, &other).await.expect_err("another cluster's");
    assert!(error.to_string().contains("system identifier 5"), "{error}");
}

#[tokio::test]
async fn the_layers_of_an_image_never_overlap_whatever_the_order_of_its_files() {
    let timeline = Timeline::new(&control_file(), 14);
    let mut builder = timeline.builder(BaseKind::Directory, &control_file(), Lsn(0x1000), Lsn(0x1000));
    builder.add_file("PG_VERSION", 0o600, b"15\n").await.expect("added");
    builder.add_file("global/pg_control", 0o600, &control_file().encode()).await.expect("added");
    // One large file among small ones, and noise, so that the large one takes several layers.
    let mut noise = 1u32;
    let mut file = |pages: usize| -> Vec<u8> {
        let mut content = vec![0; pages * 8192];
        for byte in &mut content {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (noise >> 24) as u8;
        }
        for page in content.chunks_mut(8192) {
            page[..24].fill(0);
            page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
        }
        content
    };
    for (name, pages) in [("3000", 5), ("1000", 600), ("2000", 4200), ("2500_vm", 1), ("2500", 2), ("500", 3)]
    {
        builder.add_file(&format!("base/5/{name}"), 0o600, &file(pages)).await.expect("added");
    }
    let finished = builder.finish(Lsn(0x2000), "2026-01-01T00:00:00Z").await.expect("finished");
    assert!(finished.layers.len() > 8, "{} layers", finished.layers.len());
    for pair in finished.layers.windows(2) {
        assert!(pair[0].key_max < pair[1].key_min);
    }
    assert!(finished.layers.iter().all(|layer| layer.serves_from == Lsn(0x2000)));
    assert_eq!(finished.image.data_bytes, (5 + 600 + 4200 + 1 + 2 + 3) * 8192);
    let change = Change::RegisterBase { base: finished.image, layers: finished.layers };
    timeline.manifest.commit(&change).await.expect("the manifest accepts it");
    let node = zenith_pgformat::RelNode { spc: 1663, db: 5, rel: 2000 };
    let (_, layers) = timeline.layers().await;
    assert!(state(&layers, Key::rel_size(node, zenith_pgformat::Fork::Main), Lsn(0x2000)).await.is_some());
}
