"""Where backline runs: settings, storage, stored records, audio files, tracking, logs, the command line and its manifests."""
