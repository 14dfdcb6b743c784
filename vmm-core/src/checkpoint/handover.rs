//! A checkpoint for another process on this computer: the state in a file in memory, RAM in the layers' own files, which are
//! shared.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Checkpoint;
use crate::base::{Layer, PageRun, PageTable, Section};
use crate::config::VmConfig;

/// What the file has.
#[derive(Serialize, Deserialize)]
struct Handover {
    config: VmConfig,
    sections: Vec<Section>,
    size: u64,
    /// First page, count, number of the layer.
    runs: Vec<(u64, u64, u32)>,
}

impl Checkpoint {
    /// Writes the state to a file, from its start. RAM goes with it in the files that are returned, in this order.
    pub fn hand_over(&self, mut to: &File) -> io::Result<Vec<Arc<Layer>>> {
        let layers = self.pages.layers();
        let number = |layer: &Arc<Layer>| layers.iter().position(|l| Arc::ptr_eq(l, layer)).unwrap_or(0) as u32;
        let runs = self.pages.iter().map(|(run, layer)| (run.first, run.count, number(layer))).collect();
        let Checkpoint { config, sections, size, pages: _ } = self;
        let handover = Handover { config: config.clone(), sections: sections.clone(), size: *size, runs };
        let mut bytes = Vec::new();
        ciborium::into_writer(&handover, &mut bytes).map_err(io::Error::other)?;
        to.write_all(&bytes)?;
        to.seek(SeekFrom::Start(0))?;
        Ok(layers)
    }

    /// Reads what [`Checkpoint::hand_over`] wrote; `layers` are its files.
    pub fn take_over(mut from: &File, layers: Vec<File>) -> io::Result<Checkpoint> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let Handover { config, sections, size, runs } =
            ciborium::from_reader(bytes.as_slice()).map_err(io::Error::other)?;
        let layers: Vec<Arc<Layer>> = layers.into_iter().map(Layer::new).collect();
        let mut pages = PageTable::default();
        for (first, count, number) in runs {
            let layer = layers.get(number as usize).ok_or(io::ErrorKind::InvalidData)?;
            pages.set(PageRun { first, count }, layer);
        }
        Ok(Checkpoint { config, sections, size, pages })
    }
}
