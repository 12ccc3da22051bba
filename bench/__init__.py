"""How fast and how faithful: every speed stands beside its distance from eager float32."""
