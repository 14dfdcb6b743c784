//! Checkpoints against a model: RAM is written, saved, restored and saved again in any order, and every state that is kept
//! is what it was, byte for byte.

use proptest::prelude::*;

use super::*;
use crate::base::{GuestAddress, GuestMemory, Layer, PageRun, Section};
use crate::config::VmConfig;

const PAGES: u64 = 256;
const PAGE: u64 = 4096;

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    memory: GuestMemory,
    made: usize,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("checkpoints"));
        Bench { _dir: dir, store, memory: GuestMemory::new(PAGES * PAGE).unwrap(), made: 0 }
    }

    fn moment(&self, draft: &Draft, last: Option<&str>, going_on: bool) -> Moment {
        let known = self.store.layers().unwrap();
        let base = self.memory.layers();
        let nowhere = |layer: &Layer| layer.name().is_none_or(|name| !known.iter().any(|k| k == name));
        let more: Vec<PageRun> = base.iter().filter(|(_, layer)| nowhere(layer)).map(|(run, _)| run).collect();
        let old = last.and_then(|last| self.store.old_pages(last, PAGES * PAGE).unwrap());
        let (pages, old) = old.unzip();
        let (copy, layer) = self.memory.copy(going_on, &more, pages, draft.memory().unwrap()).unwrap();
        let section = Section { name: "device".into(), version: 3, bytes: vec![self.made as u8; 100] };
        Moment { sections: vec![section], size: PAGES * PAGE, copy, base, old: old.unwrap_or_default(), layer }
    }

    /// Makes a checkpoint; with `meanwhile`, RAM is used while it is written.
    fn save(&mut self, last: Option<&str>, meanwhile: Option<u8>) -> String {
        self.made += 1;
        let id = format!("c{}", self.made);
        let draft = self.store.begin(&id).unwrap();
        let moment = self.moment(&draft, last, meanwhile.is_some());
        if let Some(byte) = meanwhile {
            for page in (0..PAGES).step_by(7) {
                self.memory.fill(GuestAddress(page * PAGE + 5), 3, byte).unwrap();
            }
        }
        draft.write(moment, &VmConfig::new(1, 1), |_| true).unwrap();
        id
    }

    fn restore(&mut self, id: &str) {
        let checkpoint = self.store.load(id).unwrap();
        self.memory = GuestMemory::restored(checkpoint.size, checkpoint.pages).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; (PAGES * PAGE) as usize];
        self.memory.read(GuestAddress(0), &mut bytes).unwrap();
        bytes
    }

    /// Bytes that a checkpoint's own pages take.
    fn space(&self, id: &str) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.store.path(id).join("memory")).unwrap().blocks() * 512
    }
}

#[derive(Debug, Clone)]
enum Step {
    Fill { page: u64, count: u64, byte: u8 },
    Save { last: Option<usize>, meanwhile: Option<u8> },
    Restore(usize),
    Remove(usize),
    Cancel,
    Compact,
    Copy { of: usize, how: Sharing },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..PAGES, 1..20u64, 0..4u8).prop_map(|(page, count, byte)| {
            Step::Fill { page, count: count.min(PAGES - page), byte }
        }),
        3 => (proptest::option::of(0..8usize), proptest::option::of(1..9u8))
            .prop_map(|(last, meanwhile)| Step::Save { last, meanwhile }),
        1 => (0..8usize).prop_map(Step::Restore),
        1 => (0..8usize).prop_map(Step::Remove),
        1 => Just(Step::Cancel),
        1 => Just(Step::Compact),
        1 => (0..8usize, any::<bool>())
            .prop_map(|(of, linked)| Step::Copy { of, how: if linked { Sharing::Linked } else { Sharing::Copied } }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_state_that_is_kept_is_what_it_was(steps in proptest::collection::vec(step(), 1..24)) {
        let mut bench = Bench::new();
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        let mut copies: Vec<(Store, String, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Fill { page, count, byte } => {
                    bench.memory.fill(GuestAddress(page * PAGE), (count * PAGE) as usize, byte).unwrap();
                }
                Step::Save { last, meanwhile } => {
                    let last = last.and_then(|i| kept.get(i)).map(|(id, _)| id.clone());
                    let now = bench.bytes();
                    let id = bench.save(last.as_deref(), meanwhile);
                    kept.push((id, now));
                }
                Step::Restore(i) => {
                    if let Some((id, _)) = kept.get(i) {
                        bench.restore(&id.clone());
                        prop_assert!(bench.bytes() == kept[i].1);
                    }
                }
                Step::Remove(i) => {
                    if i < kept.len() {
                        // RAM that is still mapped from it stays what it is.
                        let now = bench.bytes();
                        bench.store.remove(&kept.remove(i).0).unwrap();
                        prop_assert!(bench.bytes() == now);
                    }
                }
                Step::Compact => {
                    let now = bench.bytes();
                    bench.store.compact(&mut |_, _| true).unwrap();
                    prop_assert!(bench.bytes() == now);
                }
                Step::Copy { of, how } => {
                    if let Some((id, bytes)) = kept.get(of) {
                        let to = Store::new(bench._dir.path().join(format!("copy-{}", copies.len())));
                        bench.store.copy(id, &to, how, &[("about", b"a copy")]).unwrap();
                        prop_assert_eq!(std::fs::read(to.path(id).join("about")).unwrap(), b"a copy");
                        copies.push((to, id.clone(), bytes.clone()));
                    }
                }
                Step::Cancel => {
                    let draft = bench.store.begin("given-up").unwrap();
                    let moment = bench.moment(&draft, None, true);
                    let now = bench.bytes();
                    let written = draft.write(moment, &VmConfig::new(1, 1), |_| false);
                    prop_assert!(matches!(written, Err(CheckpointError::Cancelled) | Ok(())));
                    if written.is_ok() {
                        bench.store.remove("given-up").unwrap();
                    }
                    prop_assert!(bench.bytes() == now);
                }
            }
        }
        for (id, bytes) in &kept {
            bench.restore(id);
            prop_assert!(&bench.bytes() == bytes, "{}", id);
        }
        // Copies need nothing of what they are copies of.
        let mut names: Vec<String> = kept.into_iter().map(|(id, _)| id).collect();
        names.sort();
        let mut listed = bench.store.list().unwrap();
        listed.sort();
        prop_assert_eq!(&listed, &names);
        for id in names {
            bench.store.remove(&id).unwrap();
        }
        for (store, id, bytes) in copies {
            store.compact(&mut |_, _| true).unwrap();
            let checkpoint = store.load(&id).unwrap();
            let memory = GuestMemory::restored(checkpoint.size, checkpoint.pages).unwrap();
            let mut now = vec![0; bytes.len()];
            memory.read(GuestAddress(0), &mut now).unwrap();
            prop_assert!(now == bytes, "{} in a copy", id);
        }
    }
}

#[test]
fn pages_that_nobody_needs_any_more_are_given_back_and_what_is_needed_stays() {
    let mut bench = Bench::new();
    bench.memory.fill(GuestAddress(0), (PAGES * PAGE) as usize, 7).unwrap();
    let first = bench.save(None, None);
    // Three quarters are written again.
    bench.memory.fill(GuestAddress(0), (PAGES * PAGE * 3 / 4) as usize, 9).unwrap();
    let second = bench.save(Some(&first), None);
    let now = bench.bytes();
    let before = bench.store.size().unwrap();
    bench.store.remove(&first).unwrap();
    assert!(bench.store.size().unwrap() + PAGES * PAGE / 4 > before, "removing alone frees no pages");
    assert!(matches!(bench.store.compact(&mut |_, _| false), Err(CheckpointError::Cancelled)));
    bench.restore(&second);
    assert!(bench.bytes() == now);
    bench.store.compact(&mut |_, _| true).unwrap();
    // What is needed, once, and what says so.
    assert!(bench.store.size().unwrap() < (PAGES + 16) * PAGE, "{}", bench.store.size().unwrap());
    assert!(bench.bytes() == now, "what is mapped stays what it is");
    bench.restore(&second);
    assert!(bench.bytes() == now);
    // Another of a machine that runs on what was compacted meanwhile.
    bench.memory.fill(GuestAddress(0), PAGE as usize, 1).unwrap();
    let now = bench.bytes();
    let third = bench.save(Some(&second), None);
    bench.store.remove(&second).unwrap();
    bench.store.compact(&mut |_, _| true).unwrap();
    bench.restore(&third);
    assert!(bench.bytes() == now);
}

#[test]
fn a_checkpoint_of_what_hardly_changed_holds_what_changed() {
    let mut bench = Bench::new();
    bench.memory.fill(GuestAddress(0), (PAGES * PAGE) as usize, 7).unwrap();
    let first = bench.save(None, Some(1));
    assert!(bench.space(&first) >= PAGES * PAGE);
    bench.memory.fill(GuestAddress(9 * PAGE), 10, 3).unwrap();
    let second = bench.save(Some(&first), Some(2));
    // What was written while the first was made, a page more, and what the file system keeps of the file.
    assert!(bench.space(&second) <= (PAGES / 7 + 4) * PAGE, "{}", bench.space(&second));
    let third = bench.save(Some(&second), None);
    assert!(bench.space(&third) <= (PAGES / 7 + 4) * PAGE, "{}", bench.space(&third));
    // Nothing changed since.
    let fourth = bench.save(Some(&third), None);
    assert_eq!(bench.space(&fourth), 0);
    for id in [first, second, third] {
        bench.store.remove(&id).unwrap();
    }
    let now = bench.bytes();
    bench.restore(&fourth);
    assert!(bench.bytes() == now);
    bench.store.remove(&fourth).unwrap();
    assert_eq!(std::fs::read_dir(bench._dir.path().join("checkpoints")).unwrap().count(), 0);
}

#[test]
fn the_difference_between_checkpoints_is_what_is_in_other_places() {
    let mut bench = Bench::new();
    bench.memory.fill(GuestAddress(0), (10 * PAGE) as usize, 7).unwrap();
    let first = bench.save(None, None);
    assert_eq!(bench.store.difference(&first, &first).unwrap(), 0);
    // A page in the middle, one that was zeroes, one that is zeroes now.
    bench.memory.fill(GuestAddress(5 * PAGE), 10, 3).unwrap();
    bench.memory.fill(GuestAddress(200 * PAGE), 10, 3).unwrap();
    bench.memory.fill(GuestAddress(9 * PAGE), PAGE as usize, 0).unwrap();
    let second = bench.save(Some(&first), None);
    for pair in [(&first, &second), (&second, &first)] {
        assert_eq!(bench.store.difference(pair.0, pair.1).unwrap(), 3 * PAGE);
    }
    assert!(matches!(bench.store.difference(&first, "none"), Err(CheckpointError::Missing { .. })));
}

#[test]
fn what_was_not_finished_is_no_checkpoint_and_goes() {
    let bench = Bench::new();
    std::mem::forget(bench.store.begin("half").unwrap());
    assert!(bench.store.list().unwrap().is_empty());
    bench.store.collect().unwrap();
    assert_eq!(std::fs::read_dir(bench._dir.path().join("checkpoints")).unwrap().count(), 0);
}

#[test]
fn what_is_not_what_was_written_is_refused_by_name() {
    let mut bench = Bench::new();
    bench.memory.fill(GuestAddress(0), 9 * PAGE as usize, 7).unwrap();
    let id = bench.save(None, None);
    let path = bench.store.path(&id);
    assert_eq!(bench.store.load(&id).unwrap().sections[0].bytes, [1; 100]);
    for file in ["state", "pages", "manifest.json"] {
        let whole = std::fs::read(path.join(file)).unwrap();
        for damage in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[damage] ^= 0x11;
            std::fs::write(path.join(file), &bytes).unwrap();
            if let Ok(checkpoint) = bench.store.load(&id) {
                // A manifest has words whose meaning nobody checks.
                assert_eq!(file, "manifest.json");
                assert_eq!(checkpoint.sections.len(), 1);
            }
            std::fs::write(path.join(file), &whole[..damage]).unwrap();
            let error = bench.store.load(&id).err().unwrap();
            assert!(error.to_string().contains(&id), "{file}: {error}");
        }
        std::fs::write(path.join(file), whole).unwrap();
    }
    std::fs::File::options().write(true).open(path.join("memory")).unwrap().set_len(PAGE).unwrap();
    assert!(matches!(bench.store.load(&id), Err(CheckpointError::Damaged { .. })));
    assert!(matches!(bench.store.load("none"), Err(CheckpointError::Missing { .. })));
    assert!(matches!(bench.store.load("../c1"), Err(CheckpointError::Missing { .. })));
}

#[test]
fn a_newer_format_is_refused_in_words_and_nothing_is_removed_beside_it() {
    let mut bench = Bench::new();
    let id = bench.save(None, None);
    let manifest = bench.store.path(&id).join("manifest.json");
    std::fs::write(manifest, "{\"format\": 99}").unwrap();
    let error = bench.store.load(&id).err().unwrap().to_string();
    assert!(error.contains("newer"), "{error}");
    std::fs::create_dir(bench.store.path("unknown")).unwrap();
    bench.store.collect().unwrap();
    assert!(bench.store.path("unknown").is_dir());
}
