"""Programs that use Bequest through its public face alone; `bequest demo` runs them from here."""
