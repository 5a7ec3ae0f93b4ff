use super::*;
use crate::testing::{identity, names_on, numbered as timeline};
use object_store::ObjectStoreExt;
use zenith_store::{Store, put_hint};
use zenith_testkit::conformance::folder_store;
use zenith_testkit::env::JumpingClock;
use zenith_testkit::faults::{AMBIGUOUS, FaultStore, Operation, Rule};
use zenith_testkit::unconditional::UnconditionalStore;

#[tokio::test]
async fn a_name_is_taken_given_up_and_taken_again() {
    let (store, _directory) = folder_store();
    let names = names_on(&store, 1);
    names.create("main", timeline(1)).await.unwrap();
    names.create("main", timeline(1)).await.unwrap();
    let taken = names.create("main", timeline(2)).await.unwrap_err();
    assert_eq!(taken, NameError::Taken { name: "main".into(), timeline: timeline(1) });
    assert!(matches!(names.tombstone("main", timeline(2)).await, Err(NameError::Taken { .. })));
    names.tombstone("main", timeline(1)).await.unwrap();
    names.tombstone("main", timeline(1)).await.unwrap();
    assert!(matches!(names.resolve("main").await, Err(NameError::NotFound { .. })));
    assert!(names.list().await.unwrap().is_empty());
    names.create("main", timeline(2)).await.unwrap();
    assert_eq!(names.resolve("main").await.unwrap(), timeline(2));
    let versions = zenith_store::list(&*store.objects, &names.cluster.name("main"), 9).await.unwrap();
    assert_eq!(versions.len(), 3, "no version of a name is ever deleted");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told_with_those_that_do() {
    let names = names_on(&Store::memory(), 1);
    assert!(names.resolve("main").await.unwrap_err().to_string().contains("none yet"));
    for name in ["main", "b-1", "b"] {
        names.create(name, timeline(1)).await.unwrap();
    }
    let error = names.resolve("mian").await.unwrap_err();
    assert!(
        matches!(&error, NameError::NotFound { name, known, .. } if name == "mian" && known == "b, b-1, main"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_no_name_is_refused_before_the_store_is_asked() {
    let names = names_on(&Store::memory(), 1);
    let long = "x".repeat(64);
    for name in ["", ".", "..", "-x", "a/b", "a b", "ü", "a\n", "a%2Fb", &*long] {
        let error = names.create(name, timeline(1)).await.unwrap_err();
        assert!(matches!(error, NameError::Malformed { .. }), "{name:?}: {error}");
        assert!(matches!(names.resolve(name).await, Err(NameError::Malformed { .. })), "{name:?}");
    }
    names.create(&"x".repeat(63), timeline(1)).await.unwrap();
}

async fn many_create_main(store: Store) {
    let pushes = (0..8u64).map(|n| {
        let names = names_on(&store, n);
        tokio::spawn(async move { names.adopt_or_create_main(&identity(10 + n)).await.unwrap() })
    });
    let ended = futures::future::join_all(pushes).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let created = ended.iter().filter(|main| matches!(main, Main::Created(_))).count();
    assert_eq!(created, 1);
    let main = names_on(&store, 100).resolve(MAIN).await.unwrap();
    for ended in ended {
        let (Main::Created(identity) | Main::Adopted(identity)) = ended;
        assert_eq!(identity.timeline, main);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_first_pushes_one_creates_main_and_the_others_adopt_it() {
    for _ in 0..10 {
        many_create_main(Store::memory()).await;
    }
    let (store, _directory) = folder_store();
    many_create_main(store).await;
}

#[tokio::test]
async fn every_fault_at_every_put_of_a_first_push_leaves_one_main() {
    for fault in AMBIGUOUS {
        for at in 0..4 {
            for times in [1, 9] {
                let inner = Store::memory();
                let faulty =
                    FaultStore::new(Arc::clone(&inner.objects), Arc::new(JumpingClock::default()), 0);
                let faults = faulty.faults();
                faults.add(Rule::new(fault).on(Operation::Put).after(at).times(times));
                let store = inner.wrapped(|_| faulty);
                let mut main = None;
                for push in 0..20 {
                    match names_on(&store, push).adopt_or_create_main(&identity(50 + push)).await {
                        Ok(Main::Created(identity) | Main::Adopted(identity)) => {
                            main = Some(identity);
                            break;
                        }
                        Err(error) => assert!(error.to_string().contains("main/"), "{error}"),
                    }
                }
                assert!(!faults.fired().is_empty());
                let main = main.expect("twenty pushes are enough");
                let names = names_on(&inner, 100);
                assert_eq!(names.resolve(MAIN).await.unwrap(), main.timeline);
                assert_eq!(names.identity(main.timeline).await.unwrap(), main);
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused_before_anything_is_named() {
    let store = Store::memory();
    let names = names_on(&store.wrapped(UnconditionalStore::new), 1);
    let error = names.adopt_or_create_main(&identity(1)).await.unwrap_err();
    assert!(error.to_string().contains("conditional writes"), "{error}");
    assert!(zenith_store::list(&*store.objects, &store.prefix, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_push_creates_no_main_beside_other_names_or_after_it_was_given_up() {
    let store = Store::memory();
    names_on(&store, 1).create("other", timeline(1)).await.unwrap();
    let error = names_on(&store, 2).adopt_or_create_main(&identity(2)).await.unwrap_err();
    assert!(
        matches!(&error, NameError::NotFound { name, known, .. } if name == "main" && known == "other"),
        "{error}"
    );
    let store = Store::memory();
    let names = names_on(&store, 1);
    names.adopt_or_create_main(&identity(1)).await.unwrap();
    names.tombstone(MAIN, timeline(1)).await.unwrap();
    let error = names.adopt_or_create_main(&identity(2)).await.unwrap_err();
    assert!(matches!(error, NameError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_push_makes_no_second_main_where_the_name_was_lost() {
    let store = Store::memory();
    let names = names_on(&store, 1);
    names.adopt_or_create_main(&identity(1)).await.unwrap();
    let name = names.cluster.name_version(MAIN, 1);
    store.objects.delete(&name).await.unwrap();
    // Nothing was archived: it may as well be a first push that was killed before it made the name.
    names.adopt_or_create_main(&identity(2)).await.unwrap();
    let wal = names.cluster.timeline(timeline(2)).wal_file(1, "000000010000000000000001");
    put_hint(&*store.objects, &wal, "x".into()).await.unwrap();
    store.objects.delete(&name).await.unwrap();
    let lost = names_on(&store, 2).adopt_or_create_main(&identity(3)).await.unwrap_err();
    assert!(matches!(lost, NameError::NamesLost { .. }), "{lost}");
    let text = lost.to_string();
    assert!(text.contains(name.as_ref()) && text.contains(&timeline(2).to_string()), "{text}");
    assert!(names.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_name_in_use_stops_the_creation_of_a_timeline_before_anything_is_written() {
    let store = Store::memory();
    let names = names_on(&store, 1);
    names.create("test", timeline(1)).await.unwrap();
    let error = names.create_timeline("test", &identity(2)).await.unwrap_err();
    assert!(matches!(error, NameError::Taken { .. }), "{error}");
    let missing = names.identity(timeline(2)).await.unwrap_err();
    assert!(matches!(missing, NameError::NoTimeline { timeline: id, .. } if id == timeline(2)), "{missing}");
    assert!(missing.to_string().contains("/identity"), "{missing}");
}

#[tokio::test]
async fn an_identity_is_written_once_and_read_only_if_it_is_its_own() {
    let store = Store::memory();
    let names = names_on(&store, 1);
    names.write_identity(&identity(1)).await.unwrap();
    names.write_identity(&identity(1)).await.unwrap();
    let other = Identity { system_identifier: 1, ..identity(1) };
    assert!(names.write_identity(&other).await.is_err());
    assert_eq!(names.identity(timeline(1)).await.unwrap(), identity(1));

    let (from, to) = (names.cluster.timeline(timeline(1)), names.cluster.timeline(timeline(2)));
    store.objects.copy(&from.identity(), &to.identity()).await.unwrap();
    let copied = names.identity(timeline(2)).await.unwrap_err();
    assert!(copied.to_string().contains(to.identity().as_ref()), "{copied}");

    let encrypted = Identity { encryption: Some("aes".into()), ..identity(3) };
    names.write_identity(&encrypted).await.unwrap();
    assert!(names.identity(timeline(3)).await.unwrap_err().to_string().contains("encrypted"));
    let newer = Identity { format: 2, ..identity(4) };
    names.write_identity(&newer).await.unwrap();
    let newer = names.identity(timeline(4)).await.unwrap_err();
    assert!(matches!(newer, NameError::Manifest(ManifestError::Newer { .. })), "{newer}");
}

#[tokio::test]
async fn a_damaged_name_or_identity_is_named() {
    let store = Store::memory();
    let names = names_on(&store, 1);
    names.create_timeline("main", &identity(1)).await.unwrap();
    let (name, own) = (names.cluster.name_version("main", 1), names.cluster.timeline(timeline(1)).identity());
    for path in [&own, &name] {
        put_hint(&*store.objects, path, "garbage that is longer than a header".into()).await.unwrap();
    }
    assert!(names.identity(timeline(1)).await.unwrap_err().to_string().contains(own.as_ref()));
    assert!(names.resolve("main").await.unwrap_err().to_string().contains(name.as_ref()));
}
