//! Which layer has each page: a map from runs of pages to layers.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, OnceLock};

use super::PageRun;

/// Pages that never change: page N of RAM, if this layer has it, is page N of the file.
#[derive(Debug)]
pub struct Layer {
    /// What holds them.
    pub file: File,
    /// Its name in the store of checkpoints; absent while it is in memory alone.
    name: OnceLock<String>,
}

impl Layer {
    /// A layer that has no name yet.
    pub fn new(file: File) -> Arc<Layer> {
        Arc::new(Layer { file, name: OnceLock::new() })
    }

    /// A layer of a store.
    pub fn named(file: File, name: String) -> Arc<Layer> {
        Arc::new(Layer { file, name: name.into() })
    }

    /// Its name in the store, if it is there.
    pub fn name(&self) -> Option<&str> {
        self.name.get().map(String::as_str)
    }

    /// The store has it under this name from now on. A second name is not taken.
    pub fn set_name(&self, name: &str) {
        let _ = self.name.set(name.into());
    }
}

/// Pages and their layers; pages that are in none are zeroes. Cheap to clone for what it is: layers are shared.
#[derive(Debug, Clone, Default)]
pub struct PageTable {
    /// By their first page: how many, and where they are. Runs do not overlap.
    runs: BTreeMap<u64, (u64, Arc<Layer>)>,
}

impl PageTable {
    /// The runs in order.
    pub fn iter(&self) -> impl Iterator<Item = (PageRun, &Arc<Layer>)> {
        self.runs.iter().map(|(&first, (count, layer))| (PageRun { first, count: *count }, layer))
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether all pages are zeroes.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The pages of a run are zeroes from now on.
    pub fn clear(&mut self, run: PageRun) {
        let (first, end) = (run.first, run.end());
        // The one that begins before and may reach in.
        if let Some((&start, (count, layer))) = self.runs.range_mut(..first).next_back() {
            let old_end = start + *count;
            if old_end > first {
                *count = first - start;
                let rest = (old_end > end).then(|| (old_end - end, layer.clone()));
                if let Some(rest) = rest {
                    self.runs.insert(end, rest);
                }
            }
        }
        while let Some((&start, &(count, _))) = self.runs.range(first..end).next() {
            if let Some((_, layer)) = self.runs.remove(&start)
                && start + count > end
            {
                self.runs.insert(end, (start + count - end, layer));
            }
        }
    }

    /// The pages of a run are in this layer from now on.
    pub fn set(&mut self, run: PageRun, layer: &Arc<Layer>) {
        if run.count == 0 {
            return;
        }
        self.clear(run);
        let mut run = run;
        if let Some((&start, (count, before))) = self.runs.range(..run.first).next_back()
            && start + count == run.first
            && Arc::ptr_eq(before, layer)
        {
            run = PageRun { first: start, count: count + run.count };
        }
        if let Some((count, after)) = self.runs.get(&run.end())
            && Arc::ptr_eq(after, layer)
        {
            let count = *count;
            self.runs.remove(&run.end());
            run.count += count;
        }
        self.runs.insert(run.first, (run.count, layer.clone()));
    }

    /// The pages of a run are what they are in `other` from now on.
    pub fn take(&mut self, run: PageRun, other: &PageTable) {
        self.clear(run);
        let before = other.runs.range(..run.first).next_back();
        for (&first, (count, layer)) in before.into_iter().chain(other.runs.range(run.first..run.end())) {
            let (first, end) = (first.max(run.first), (first + count).min(run.end()));
            if first < end {
                self.set(PageRun { first, count: end - first }, layer);
            }
        }
    }

    /// The layers, each once.
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        let mut layers: Vec<Arc<Layer>> = Vec::new();
        for (_, layer) in self.runs.values() {
            if !layers.iter().any(|known| Arc::ptr_eq(known, layer)) {
                layers.push(layer.clone());
            }
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer() -> Arc<Layer> {
        Layer::new(File::open("/dev/null").unwrap())
    }

    fn at(table: &PageTable, page: u64) -> Option<&Arc<Layer>> {
        table.iter().find(|(run, _)| (run.first..run.end()).contains(&page)).map(|(_, layer)| layer)
    }

    #[test]
    fn neighbours_of_one_layer_are_one_run() {
        let (a, mut table) = (layer(), PageTable::default());
        for first in [0, 8, 4] {
            table.set(PageRun { first, count: 4 }, &a);
        }
        assert_eq!(table.iter().map(|(run, _)| run).collect::<Vec<_>>(), [PageRun { first: 0, count: 12 }]);
    }

    proptest! {
        #[test]
        fn it_is_an_array_of_pages(steps in proptest::collection::vec((0u64..40, 0u64..20, 0usize..5), 0..40)) {
            let layers = [layer(), layer(), layer()];
            let (mut table, mut other) = (PageTable::default(), PageTable::default());
            other.set(PageRun { first: 5, count: 11 }, &layers[2]);
            other.set(PageRun { first: 30, count: 20 }, &layers[0]);
            let mut model: Vec<Option<usize>> = vec![None; 64];
            let in_other = |page: usize| match page { 5..16 => Some(2), 30..50 => Some(0), _ => None };
            for (first, count, what) in steps {
                let run = PageRun { first, count };
                let pages = first as usize..(first + count) as usize;
                match what {
                    3 => {
                        table.clear(run);
                        pages.for_each(|page| model[page] = None);
                    }
                    4 => {
                        table.take(run, &other);
                        pages.for_each(|page| model[page] = in_other(page));
                    }
                    _ => {
                        table.set(run, &layers[what]);
                        pages.for_each(|page| model[page] = Some(what));
                    }
                }
                for (page, expected) in model.iter().enumerate() {
                    let found = at(&table, page as u64).map(|l| layers.iter().position(|x| Arc::ptr_eq(x, l)).unwrap());
                    prop_assert_eq!(found, *expected, "page {}", page);
                }
            }
        }
    }
}
