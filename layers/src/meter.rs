//! What one piece of work asks of the layers, for those who want to know. It is counted in the task that does the work: whoever
//! waits for another's is told nothing of it.

use std::cell::Cell;

/// What was asked of the layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Looked {
    /// Layers that were looked into, in the caches or in the store. One that was looked into twice counts twice.
    pub layers: u32,
    /// Requests to the store.
    pub requests: u32,
}

tokio::task_local! {
    static LOOKED: Cell<Looked>;
}

/// Does the work, and says what it asked of the layers; what metered work within it asked is part of that. Work that it leaves to
/// other tasks is not seen.
pub async fn metered<T>(work: impl Future<Output = T>) -> (T, Looked) {
    let measured = async {
        let done = work.await;
        (done, LOOKED.with(Cell::get))
    };
    let (done, looked) = LOOKED.scope(Cell::default(), measured).await;
    change(|all| {
        all.layers = all.layers.saturating_add(looked.layers);
        all.requests = all.requests.saturating_add(looked.requests);
    });
    (done, looked)
}

/// A layer is looked into.
pub(crate) fn layer() {
    change(|looked| looked.layers = looked.layers.saturating_add(1));
}

/// The store is asked.
pub(crate) fn request() {
    change(|looked| looked.requests = looked.requests.saturating_add(1));
}

fn change(change: impl FnOnce(&mut Looked)) {
    // An error: nobody wants to know.
    let _ = LOOKED.try_with(|cell| {
        let mut looked = cell.get();
        change(&mut looked);
        cell.set(looked);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_piece_of_work_is_counted_on_its_own() {
        layer();
        let (inner, outer) = metered(async {
            layer();
            let beside = metered(async {
                request();
                tokio::task::yield_now().await;
                request();
            });
            let (((), inner), ()) = futures::join!(beside, async { layer() });
            inner
        })
        .await;
        assert_eq!(inner, Looked { layers: 0, requests: 2 });
        assert_eq!(outer, Looked { layers: 2, requests: 2 });
    }
}
