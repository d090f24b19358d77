"""The table "When something breaks" in docs/operations.md: every row has tests that prove it, and every test
is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROOF = {  # how a row begins → tests that prove it
    "with tiles: the model fails for one tile": [
        "video/test_tiles::test_a_call_that_fails_marks_the_frame_and_the_next_one_is_computed_whole",
        "video/test_tiles::test_a_call_that_fails_ends_the_run_where_it_should",
    ],
    "with tiles: the selection of tiles fails": [
        "video/test_tiles::test_a_selection_of_tiles_that_fails_ends_its_own_camera_only",
    ],
    "with tiles: a frame no larger than a tile": [
        "tracking/test_tile_selection::test_a_frame_that_is_not_cut_is_reported_once",
        "core/test_tiles::test_tiles_below_the_stride_are_refused",
        "video/test_tiles::test_tiles_of_an_unknown_source_are_refused",
        "video/test_tiles::test_a_model_for_whole_pictures_is_not_cut",
    ],
    "with tiles by motion: something comes": [
        "tracking/test_tile_selection::test_the_turn_finds_what_appears_below_the_bar_within_its_frames",
        "tracking/test_tile_selection::test_a_camera_that_was_pushed_is_computed_whole",
        "tracking/test_tile_selection::test_a_lamp_is_not_motion",
    ],
    "zones are drawn that a run would refuse": [
        "reporting/test_zone_files::test_what_a_run_would_refuse_is_not_written",
        "reporting/test_zone_files::test_a_file_that_somebody_else_changed_is_not_overwritten",
        "reporting/test_draw_zones::test_a_disk_that_cannot_be_written_is_told_in_place",
        "reporting/test_in_jupyterlab::test_what_is_wrong_stands_below_the_picture_until_it_is_undone",
    ],
    "a widget is shown without a front end": [
        "reporting/test_thresholds::test_without_a_front_end_it_is_a_card_with_a_picture",
        "reporting/test_draw_zones::test_without_a_front_end_it_is_the_frame_with_the_shapes",
        "reporting/test_thresholds::test_without_ipywidgets_the_extra_is_named",
    ],
    "the film of a scrubber is cut off": [
        "reporting/test_scrubber::test_a_film_that_is_cut_off_is_read_as_far_as_it_goes",
        "reporting/test_thresholds::test_missing_pictures_leave_the_numbers",
        "reporting/test_failure_browser::test_a_table_of_another_kind_is_not_overwritten",
    ],
    "evidence of the checklist was edited": [
        "readiness/test_checklist::test_no_place_that_was_read_can_be_changed_and_pass",
        "readiness/test_checklist::test_no_evidence_that_is_about_something_else_passes",
        "readiness/test_checklist::test_a_file_that_is_cut_off_proves_nothing_and_ends_nothing",
        "readiness/test_checklist::test_an_edited_file_is_found_by_the_log",
    ],
    "`checklist.yaml` is missing": [
        "readiness/test_checklist::test_a_wrong_checklist_yaml_is_a_config_error",
        "readiness/test_checklist::test_a_missing_checklist_yaml_is_a_config_error",
    ],
    "a stored decision no longer": [
        "readiness/test_decide::test_an_answer_that_was_edited_is_found",
        "readiness/test_checklist::test_a_decision_that_was_edited_fails_and_an_override_counts",
    ],
    "`init` into a folder that is not empty": [
        "readiness/test_init::test_a_full_folder_is_refused_with_what_is_in_it",
        "readiness/test_init::test_a_model_that_is_not_one_leaves_nothing_behind",
        "readiness/test_init::test_a_failure_half_way_leaves_nothing_behind",
        "readiness/test_init::test_a_parent_that_cannot_be_written_is_a_sentence",
    ],
    "a large model that draws drafts fails": [
        "annotation/test_suggest::test_a_service_that_never_answers_meets_its_deadline",
        "annotation/test_suggest::test_a_service_that_drips_meets_its_deadline",
        "annotation/test_suggest::test_rubbish_is_a_typed_error",
        "annotation/test_suggest::test_three_failures_in_sequence_end_it_with_what_there_is",
        "annotation/test_suggest::test_a_killed_process_continues",
    ],
    "the hours of a profile begin or end": [
        "service/test_reload::test_a_profile_counts_from_its_hour_on",
        "service/test_reload::test_a_profile_that_a_run_could_not_take_is_known_when_it_begins",
    ],
    "a site falls silent": [
        "alerts/test_handover::test_what_was_open_without_an_answer_is_taken_over_with_the_silence",
        "alerts/test_handover::test_killed_anywhere_it_is_repeated_to_the_same_end",
        "alerts/test_handover::test_a_site_that_is_heard_again_gets_its_incidents_back",
    ],
    "FiftyOne or its database is missing while a map": [
        "apps/test_browse::test_without_fiftyone_the_command_writes_the_page",
        "apps/test_browse::test_what_fails_leaves_no_half_dataset",
    ],
    "a converter for LiteRT or NCNN": [
        "optimization/test_small_files::test_a_converter_that_is_missing",
        "optimization/test_small_files::test_a_converter_that_fails_or_hangs",
        "optimization/test_small_files::test_a_converter_that_writes_nothing",
    ],
    "a parity file of a device was edited": [
        "release/test_attest::test_an_edited_file_is_refused",
        "release/test_attest::test_what_a_parity_file_is_not",
        "release/test_attest::test_a_device_that_is_blind_is_refused_with_reasons",
    ],
    "an index of a search is cut": [
        "apps/test_search::test_a_broken_list_is_a_typed_error",
        "apps/test_search::test_a_broken_file_is_a_typed_error",
        "apps/test_search::test_vectors_of_another_model_are_refused",
        "apps/test_search_files::test_a_model_that_has_changed_is_refused",
    ],
    "a process is killed while an index": [
        "apps/test_search::test_a_process_that_is_killed_while_it_erases_leaves_an_index_and_a_second_call_finishes",
    ],
    "a hash list is damaged": [
        "apps/test_hash_lists::test_a_bad_line_is_named",
        "apps/test_hash_lists::test_a_broken_list_is_not_overwritten",
        "apps/test_hash_lists::test_a_flat_picture_is_not_listed",
        "apps/test_hash_lists::test_a_flat_picture_has_no_quality_and_never_acts",
    ],
    "a picture of moderation cannot be read": [
        "apps/test_moderation::test_a_file_that_cannot_be_read_goes_to_a_person",
        "apps/test_moderation::test_a_network_that_fails_sends_pictures_to_people",
    ],
    "the context model is absent": [
        "apps/test_context::test_rubbish_of_a_context_model_is_no_answer",
        "apps/test_context::test_a_late_context_model_is_no_answer_and_requests_do_not_pile_up",
        "apps/test_context::test_an_address_where_no_one_listens_is_no_answer",
    ],
    "thresholds of moderation are not proven": [
        "apps/test_decisions::test_thresholds_that_are_not_proven_send_everything_to_people",
        "apps/test_decisions::test_void_promises_leave_only_the_list",
        "apps/test_moderation_queue::test_a_voided_policy_sends_everything_to_people",
    ],
    "a line of the trail was changed": [
        "apps/test_moderation::test_a_changed_line_breaks_the_chain",
        "apps/test_moderation::test_a_decision_that_does_not_follow_from_its_evidence_is_found",
    ],
    "too few tracks for a cascade": [
        "apps/test_cascade::test_too_few_tracks_are_named_with_the_number_that_is_needed",
        "apps/test_cascade::test_a_first_stage_as_slow_as_the_large_model_is_named",
        "apps/test_cascade::test_a_second_stage_as_slow_as_the_large_model_is_named",
    ],
    "a stage of a cascade is missing": [
        "apps/test_cascade::test_a_changed_stage_changes_the_model",
        "apps/test_cascade::test_another_model_in_the_place_of_a_stage",
        "apps/test_cascade::test_a_stage_outside_of_the_folder_is_refused",
    ],
    "a served model does not give an output": [
        "inference/test_triton_outputs::test_outputs_of_another_head_are_refused",
        "inference/test_triton_outputs::test_an_output_that_is_missing_in_an_answer_is_invalid",
    ],
    "the detector or the good parts of an inspection": [
        "apps/test_inspector::test_a_changed_or_missing_file_is_found",
        "apps/test_inspector::test_a_file_that_is_no_inspection",
    ],
    "a part is cut off by the edge": [
        "apps/test_inspector::test_parts_at_the_edge_of_the_picture_are_not_judged",
    ],
    "too few good parts for an anomaly": [
        "apps/test_anomaly::test_too_few_good_pictures",
        "apps/test_anomaly::test_a_damaged_model_is_a_typed_error",
        "apps/test_anomaly::test_a_class_that_was_not_fitted",
        "apps/test_anomaly::test_a_threshold_needs_fifty_nine_good_parts",
    ],
    "a picture of a search is missing": [
        "apps/test_search_files::test_a_missing_picture_is_a_grey_tile",
        "apps/test_search_files::test_a_picture_that_cannot_be_checked_is_not_shown",
    ],
    "`cv-pipeline reload` with a wrong file": [
        "service/test_reload::test_a_wrong_file_is_refused_with_its_reason",
        "service/test_reload::test_after_wrong_files_the_old_one_runs_on",
        "service/test_reload::test_the_command_changes_a_real_run",
    ],
    "a command is given a model of another task": [
        "evaluation/test_tasks::test_a_wrong_task_is_named_with_those_that_fit",
        "inference/test_heads::test_tasks_of_a_model_are_named_by_its_methods",
    ],
    "a graph with two outputs": [
        "inference/test_heads::test_what_does_not_fit_is_named",
        "inference/test_heads::test_a_runtime_that_takes_one_output_says_so",
    ],
    "a segmentation network has other classes": [
        "inference/test_heads::test_a_network_of_other_classes_is_no_mask",
    ],
    "a camera is added or removed": [
        "service/test_reload::test_an_untouched_camera_is_the_same_to_the_byte",
        "service/test_reload::test_a_removed_camera_is_delivered_to_its_last_frame_and_keeps_its_counts",
        "service/test_reload::test_thirty_reloads_leave_no_thread_no_channel_and_no_memory",
    ],
    "a run that is asked to reload": [
        "service/test_reload::test_who_asks_when_the_run_ends_gets_an_answer",
        "service/test_reload::test_a_run_that_does_not_answer_is_named_and_the_request_is_taken_back",
        "service/test_reload::test_asking_a_run_that_was_killed_is_a_data_error",
    ],
    "a viewer of the live page": [
        "alerts/test_live::test_a_viewer_that_never_reads_is_let_go_and_holds_no_frame",
    ],
    "a hundred viewers": [
        "alerts/test_live::test_a_hundred_viewers_are_bounded_and_told_so",
    ],
    "a live picture cannot": [
        "alerts/test_live::test_a_picture_that_cannot_be_checked_is_not_shown",
    ],
    "a foreign name is pointed": [
        "alerts/test_live::test_a_foreign_name_that_points_here_is_refused_without_a_token"
    ],
    "a wrong token for the live page": [
        "alerts/test_live::test_a_wrong_token_sees_nothing",
    ],
    "a site is dead": [
        "alerts/test_sites::test_a_dead_site_is_stale_after_two_periods_and_never_ok",
        "alerts/test_sites::test_kill_minus_nine_leaves_a_whole_state_that_becomes_stale",
        "alerts/test_sites::test_a_camera_of_a_stale_site_is_unknown_and_its_age_grows",
    ],
    "the store of a site": [
        "alerts/test_sites::test_a_store_that_refuses_never_ends_the_run_and_gets_everything_later",
        "alerts/test_sites::test_closing_does_not_wait_for_a_store_that_hangs",
    ],
    "the state of a site is torn": [
        "alerts/test_sites::test_a_half_written_file_is_a_state_of_its_own_site_only",
        "alerts/test_sites::test_a_state_of_another_version_is_named",
    ],
    "the clock of a site": [
        "alerts/test_sites::test_a_clock_that_is_off_is_shown_and_never_ok",
    ],
    "counts of a site": [
        "alerts/test_sites::test_late_and_double_days_change_nothing",
    ],
    "two sites have one name": [
        "alerts/test_sites::test_two_sites_of_one_name_are_said_to_be",
    ],
    "a store of many sites": [
        "alerts/test_sites::test_a_store_that_refuses_costs_the_others_nothing",
        "alerts/test_sites_page::test_a_store_that_fails_is_on_the_page_and_the_server_lives",
    ],
    "a wrong token for the page of sites": [
        "alerts/test_sites_page::test_a_wrong_token_sees_nothing",
    ],
    "HTML in names of sites": [
        "alerts/test_sites_page::test_html_in_every_field_is_text",
    ],
    "a run or the daemon of alerts": [
        "alerts/test_kills::test_killed_runs_and_daemons_lose_and_double_nothing"
    ],
    "the daemon of alerts was away": [
        "alerts/test_incidents::test_after_three_hours_the_newest_call_once_and_late"
    ],
    "a receiver of calls": [
        "alerts/test_outbox_of_alerts::test_a_call_that_failed_waits_longer_and_longer",
        "alerts/test_outbox_of_alerts::test_a_receiver_that_hangs_holds_its_own_thread_only",
        "alerts/test_outbox_of_alerts::test_when_no_channel_takes_it_the_next_level_is_called",
    ],
    "a receiver takes calls": [
        "commands/test_alerts::test_a_receiver_that_takes_calls_and_drops_them_is_found"
    ],
    "the wall clock of the machine with alerts": [
        "alerts/test_incidents::test_a_wall_clock_that_jumps_moves_no_timer",
        "alerts/test_incidents::test_a_wall_clock_that_is_set_ends_quiet_hours_within_the_hour",
    ],
    "an incident comes and goes": [
        "alerts/test_incidents::test_thirty_openings_are_one_incident_called_a_few_times"
    ],
    "100,000 events": [
        "alerts/test_daemon::test_a_hundred_thousand_events_in_a_minute_are_bounded_and_counted"
    ],
    "an acknowledgement is forgotten": [
        "alerts/test_incidents::test_an_acknowledgement_reminds_ends_and_the_ladder_continues_where_it_was"
    ],
    "quiet hours, maintenance": [
        "alerts/test_incidents::test_in_quiet_hours_nothing_is_called_and_then_the_ladder_begins",
        "alerts/test_incidents::test_maintenance_is_kept_counted_and_not_called",
        "alerts/test_incidents::test_a_silence_of_a_person_holds_and_can_be_ended",
    ],
    "the policy of alerts is changed": [
        "alerts/test_daemon::test_a_changed_policy_that_is_wrong_leaves_the_one_in_force",
        "alerts/test_daemon::test_calls_of_a_channel_that_was_removed_are_not_owed_any_more",
    ],
    "a policy has a mistake": ["alerts/test_policy::test_a_mistake_is_named"],
    "two daemons": ["alerts/test_daemon::test_one_daemon_for_a_book"],
    "the incident book is damaged": [
        "alerts/test_incidents::test_a_damaged_book_says_what_to_do",
        "alerts/test_daemon::test_a_damaged_book_is_a_sentence_before_the_run",
    ],
    "the disk of the incident book": [
        "alerts/test_incidents::test_a_full_disk_takes_none_of_a_batch_and_all_of_it_later",
        "alerts/test_daemon::test_what_the_disk_does_not_take_waits_in_memory_bounded",
        "alerts/test_daemon::test_a_full_disk_is_a_problem_and_the_next_round_tries_again",
    ],
    "a link of a call": [
        "alerts/test_ack::test_every_edited_link_is_refused",
        "alerts/test_ack::test_a_link_works_once",
        "alerts/test_ack::test_a_link_ends_after_a_day",
        "alerts/test_ack::test_opening_a_link_shows_and_changes_nothing",
    ],
    "a camera, rule or note": [
        "alerts/test_ack::test_the_page_shows_hostile_names_as_text",
        "alerts/test_channels::test_html_has_no_tag_of_its_fields",
        "alerts/test_mqtt::test_a_part_of_a_topic_is_one_level_without_wildcards",
    ],
    "a picture of an alert": ["alerts/test_daemon::test_a_picture_that_could_not_be_covered_is_not_kept"],
    "the face finder fails": [
        "video/test_cover::test_a_finder_that_fails_shows_no_picture_and_the_results_continue"
    ],
    "the face finder is slower": [
        "video/test_cover::test_a_finder_slower_than_the_camera_costs_pictures_and_is_counted"
    ],
    "`kill -9` while pictures": ["video/test_cover::test_kill_9_leaves_a_film_without_an_uncovered_frame"],
    "a camera's clock or count": [
        "video/test_cover::test_a_clock_that_is_set_back_loses_no_frame_and_uncovers_none",
        "video/test_cover::test_a_count_that_begins_again_loses_no_frame",
    ],
    "a run watches cameras": [
        "video/test_cover::test_it_is_on_where_people_may_be_seen_and_off_for_a_reason",
        "video/test_cover::test_the_summary_of_a_run_holds_the_decision",
    ],
    "`privacy: off`": ["video/test_cover::test_off_without_a_reason_is_refused"],
    "a file fails": ["video/test_pipeline::test_a_dead_camera_does_not_stop_or_delay_the_others"],
    "with a packet gate: sizes": [
        "video/test_packets::test_constant_bit_rate_is_known_and_every_packet_is_decoded",
        "video/test_packets::test_constant_bit_rate_with_glances_decodes_key_frames_and_still_counts",
        "video/test_packets::test_every_packet_of_mjpeg_is_a_picture_and_nothing_is_gained",
    ],
    "with a packet gate: broken": [
        "video/test_packets::test_broken_packets_while_asleep_cost_nothing_and_are_not_shown",
        "video/test_packets::test_a_broken_key_frame_while_asleep_is_skipped_and_the_next_one_is_seen",
        "video/test_packets::test_empty_packets_are_counted_and_do_not_end_the_decoder",
        "video/test_packets::test_packets_without_any_time_are_all_decoded",
        "video/test_packets::test_a_camera_that_lies_about_key_frames_is_decoded_in_full",
        "video/test_packets::test_a_stream_without_key_frames_is_decoded_ahead_and_holds_a_bounded_number",
    ],
    "with a packet gate: another": [
        "video/test_packets::test_another_picture_size_while_asleep_is_seen_at_the_next_glance",
        "video/test_packets::test_a_clock_that_jumps_begins_learning_anew",
    ],
    "clips of events (`delivery.clips`)": [
        "video/test_clips::test_a_kill_leaves_no_half_clip",
        "video/test_clips::test_a_lost_connection_does_not_lose_the_clip",
        "video/test_clips::test_the_name_of_an_event_cannot_leave_the_folder",
    ],
    "clips of events: packets that no film": [
        "video/test_clips::test_packets_that_no_film_can_hold_are_counted_and_nothing_else_ends",
        "video/test_clips::test_a_group_that_is_too_large_gives_no_half_group",
        "video/test_clips::test_a_camera_that_never_gave_a_frame_has_no_clip",
    ],
    "clips of events: the folder": [
        "video/test_clips::test_the_oldest_clips_go_first_and_their_names_are_recorded",
        "video/test_clips::test_a_disk_that_fails_is_an_error_of_the_sink",
    ],
    "clips of events where": [
        "video/test_clips::test_behind_the_cover_a_clip_shows_covered_pictures_only",
        "video/test_clips::test_a_run_that_covers_pictures_keeps_no_packets",
        "video/test_clips::test_packets_are_kept_only_where_nothing_is_covered",
    ],
    "two streams: the main one is lost": [
        "service/test_two_streams::test_a_lost_main_stream_gives_small_pictures_and_comes_back",
        "service/test_two_streams::test_a_main_stream_that_never_comes_is_waited_for_without_delay",
        "service/test_two_streams::test_clips_are_of_the_small_stream_while_the_main_one_is_away",
        "video/test_substream::test_a_main_film_that_ends_sooner_gives_small_pictures_and_says_so",
    ],
    "two streams: different shapes": [
        "service/test_two_streams::test_films_of_another_shape_end_the_run_before_it_begins",
        "service/test_two_streams::test_films_the_wrong_way_round_are_named",
        "service/test_two_streams::test_places_in_pixels_are_refused_where_there_are_two_pictures",
        "video/test_substream::test_pairs_that_are_none_are_refused",
        "video/test_substream::test_a_small_picture_that_changes_its_shape_is_noted_and_the_run_goes_on",
    ],
    "two streams: one shows": [
        "video/test_substream::test_a_planted_lag_is_found_within_a_frame",
        "video/test_substream::test_a_view_in_which_nothing_moves_gives_no_lag",
        "video/test_substream::test_a_movement_that_repeats_gives_no_lag",
        "video/test_substream::test_the_lag_of_a_camera_is_measured_while_it_runs",
        "video/test_substream::test_a_picture_that_has_not_come_yet_is_waited_for_and_not_for_ever",
    ],
    "two streams: a main stream without": [
        "video/test_substream::test_a_main_stream_without_key_frames_is_named",
        "video/test_substream::test_a_broken_packet_costs_its_picture_not_the_run",
        "video/test_substream::test_a_ring_is_bounded_in_bytes",
    ],
    "two streams where": [
        "service/test_two_streams::test_with_privacy_nothing_uncovered_of_the_main_stream_is_kept",
        "service/test_two_streams::test_a_run_that_covers_makes_no_clip_of_packets",
        "video/test_substream::test_with_privacy_a_result_that_did_not_pass_the_gate_stays_as_it_is",
        "video/test_substream::test_with_privacy_nothing_is_taken_before_the_lag_is_measured",
        "video/test_substream::test_a_main_picture_that_cannot_be_checked_is_not_kept",
    ],
    "a camera is lost": [
        "video/test_reconnect::test_backoff_grows_stays_bounded_and_spreads",
        "video/test_streams::test_a_server_that_accepts_and_never_sends",
    ],
    "a camera was away": ["tracking/test_zones::test_after_a_gap_nobody_has_stayed"],
    "a rule names": [
        "tracking/test_watch::test_what_is_wrong_between_keys_has_its_path",
        "tracking/test_watch::test_a_configuration_with_rules_is_checked_with_its_sources",
        "commands/test_rules::test_a_wrong_file_is_refused_with_the_path_of_the_key",
    ],
    "a tracker gives an object": [
        "tracking/test_watch::test_a_parked_car_alarms_once_whatever_the_tracker_calls_it",
        "tracking/test_watch::test_another_car_after_the_place_was_seen_empty_is_another_car",
    ],
    "a camera with rules": [
        "tracking/test_watch::test_a_lost_camera_does_not_park_the_car_again",
        "tracking/test_watch::test_a_clock_that_jumps_invents_nothing",
        "tracking/test_watch::test_too_few_is_only_said_of_an_interval_that_was_watched",
    ],
    "a rule for speeds": ["tracking/test_watch::test_a_speed_without_a_plane_here_is_switched_off_and_named"],
    "recorded results have no": [
        "tracking/test_watch::test_results_that_cannot_be_replayed",
        "tracking/test_watch::test_lines_alone_and_torn_ones",
    ],
    "a traffic report": [
        "monitoring/test_traffic::test_a_run_without_events",
        "monitoring/test_traffic::test_counts_by_hand_that_are_none",
        "monitoring/test_traffic::test_too_few_hours_by_hand_correct_nothing_and_that_is_reported",
    ],
    "a wrong password": ["video/test_streams::test_a_wrong_password_is_tried_rarely_and_a_new_one_is_found"],
    "a tracker or selector": [
        "video/test_pipeline::test_a_tracker_or_selector_that_fails_ends_its_own_camera_only"
    ],
    "one broken picture": ["video/test_folders::test_everything_that_is_not_read_is_counted_and_named"],
    "the clock of a recording": [
        "video/test_as_players_show::test_a_jump_is_named",
        "video/test_as_players_show::test_a_camera_whose_clock_jumps_goes_on",
    ],
    "pixels that are not": ["video/test_as_players_show::test_interlaced_pictures_are_said_to_be_combed"],
    "model slower": ["video/test_pipeline::test_freshest_frame_bounds_latency_and_counts_drops"],
    "runtime error": ["video/test_pipeline::test_recover_opens_the_backend_anew"],
    "out of memory": ["video/test_pipeline::test_out_of_memory_splits_the_batch_and_loses_nothing"],
    "a file of a model folder": ["inference/test_choice::test_every_batch_is_answered_while_one_file_works"],
    "a Triton server": ["inference/test_triton::test_kill_minus_nine_and_restart_loses_no_promised_frame"],
    "no driver": ["commands/test_main::test_build_without_a_card_is_a_sentence"],
    "NaN, infinity": [
        "video/test_pipeline::test_nan_output_names_the_model",
        "video/test_pipeline::test_wrong_shaped_output_is_a_backend_error",
    ],
    "scores, boxes": [
        "inference/test_meaning::test_a_run_with_such_a_model_ends_with_code_4_and_names_the_head"
    ],
    "a best score": ["inference/test_meaning::test_a_run_says_that_its_model_is_suspicious"],
    "model file and manifest": ["core/test_model_files::test_swapped_weights_are_seen"],
    "a dataset with findings": ["core/test_reading::test_most_labels_gone_is_an_error_a_few_are_counted"],
    "a promise of a threshold": [
        "commands/test_thresholds::test_too_few_labels_end_with_1_and_say_how_many",
        "commands/test_thresholds::test_drift_decides_whether_it_stands",
    ],
    "a report fails": [
        "reporting/test_failures_and_schedules::test_a_killed_kernel_leaves_a_page_an_entry_and_exit_code_1"
    ],
    "any other exception": [
        "video/test_liveness::test_no_exception_at_a_call_breaks_a_promise",
        "video/test_liveness::test_a_run_ends_when_any_of_its_threads_cannot_be_started",
        "commands/test_signals::test_whatever_ends_a_command_is_a_sentence",
    ],
    "the model keeps failing": [
        "video/test_liveness::test_three_failed_batches_are_too_many",
        "video/test_liveness::test_a_model_that_answers_again_is_ready_again",
    ],
    "a sink, a driver": [
        "video/test_liveness::test_a_stage_that_is_stuck_is_not_ready",
        "video/test_liveness::test_a_run_that_is_to_end_does_not_wait_for_a_dead_disk",
    ],
    "Ctrl-C": [
        "video/test_interrupts::test_a_hundred_random_moments_leave_whole_files",
        "commands/test_signals::test_the_exit_code_names_the_signal",
    ],
    "the terminal, the pipe": [
        "commands/test_signals::test_a_run_whose_reader_has_gone_writes_everything",
        "commands/test_signals::test_a_result_that_could_not_be_printed_is_not_delivered",
    ],
    "a file name that is not": ["commands/test_signals::test_names_that_are_no_utf8"],
    "`ulimit -v`": ["commands/test_signals::test_a_limit_that_is_too_low_is_said_before_anything_begins"],
    "a model file is replaced": ["inference/test_choice::test_a_file_that_was_changed_is_not_opened_again"],
    "`kill -9` of a command": ["annotation/test_faults::test_killed_commands_leave_nothing_half"],
    "`kill -9` of `collect`": [
        "annotation/test_faults::test_a_collection_goes_on_where_it_was_killed",
        "annotation/test_faults::test_an_unfinished_collection_is_refused_by_every_reader",
    ],
    "two processes": ["annotation/test_faults::test_writers_at_once_lose_nothing"],
    "idle, slow": [
        "core/test_http_server::test_silent_guests_are_let_go_and_others_are_answered",
        "core/test_http_server::test_a_byte_now_and_then_does_not_prolong_a_request",
    ],
    "a wrong or missing token": [
        "core/test_http_server::test_only_who_knows_the_token_is_answered",
        "commands/test_health::test_a_run_asks_for_the_token_of_its_configuration",
    ],
    "a checkpoint": [
        "core/test_model_files::test_every_way_to_open_a_checkpoint_asks_first",
        "core/test_model_files::test_weights_outside_of_the_folder_are_not_read",
    ],
    "a folder of a run": [
        "annotation/test_foreign_folders::test_a_collection_cannot_name_pictures_outside",
        "annotation/test_foreign_folders::test_collecting_from_a_foreign_run_calls_nobody",
    ],
    "the supervisor": [
        "video/test_supervisor::test_a_run_says_that_it_is_ready_and_lives_and_stops_in_order"
    ],
    "two runs": [
        "commands/test_main::test_two_runs_do_not_share_a_folder",
        "annotation/test_faults::test_two_runs_do_not_fill_one_folder",
    ],
    "disk full, read-only": [
        "core/test_disks::test_a_disk_that_is_full",
        "core/test_disks::test_a_disk_that_is_read_only",
        "core/test_disks::test_no_descriptor_is_left",
    ],
    "disk full for a while": [
        "video/test_sinks::test_a_full_disk_keeps_rows_until_there_is_space_and_bounds_memory"
    ],
    "`kill -9` |": [
        "core/test_tables::test_rows_before_a_silence_survive_kill_9",
        "video/test_sinks::test_kill_9_loses_nothing_that_was_acknowledged",
    ],
    "a second start in the folder of a killed run": [
        "core/test_runs::test_everything_of_a_killed_run_goes_into_one_folder"
    ],
    "a second start in the folder of a closed run": [
        "core/test_runs::test_a_closed_run_over_files_gives_way_with_all_its_files"
    ],
    "a bundle was changed": [
        "release/test_bundles::test_no_bit_can_be_changed",
        "release/test_bundles::test_a_bundle_that_is_cut_off_is_refused",
        "release/test_bundles::test_a_list_with_hostile_paths_is_refused",
    ],
    "a release is offered that is older": [
        "release/test_trust::test_an_attack_is_refused_with_its_reason_and_leaves_no_trace"
    ],
    "signed metadata has expired": [
        "release/test_trust::test_a_clock_a_year_ahead_is_a_state_and_does_no_harm_for_ever",
        "release/test_trust::test_nothing_is_fetched_while_freshness_cannot_be_verified",
    ],
    "the clock says 1970": [
        "release/test_trust::test_a_source_that_stands_still_is_noticed_also_with_a_clock_at_1970"
    ],
    "no source of releases": [
        "release/test_trust::test_a_source_that_is_not_there_is_a_state_without_secrets"
    ],
    "a model sees something else": [
        "release/test_bundles::test_mixed_up_colours_are_caught_at_every_precision",
        "release/test_bundles::test_faults_are_caught_and_named",
    ],
    "`kill -9` or a power cut during `registry add`": [
        "release/test_registry::test_a_kill_at_any_step_leaves_a_whole_registry",
        "release/test_registry::test_a_power_cut_takes_nothing_back_that_was_acknowledged",
        "release/test_trust::test_a_kill_before_any_write_leaves_a_repository_that_works",
    ],
    "a version or the log of a registry": [
        "release/test_registry::test_every_edit_of_a_line_is_noticed",
        "release/test_registry::test_a_shortened_log_is_noticed_with_the_noted_head",
    ],
    "days of running": [
        "core/test_tables::test_an_hour_is_finished_in_silence",
        "core/test_tables::test_the_oldest_hours_go_with_all_that_belongs_to_them",
    ],
    "a clock that is set back": [
        "core/test_tables::test_hours_never_turn_back_whatever_the_clock_on_the_wall_does"
    ],
    "the link to the centre": [
        "edge/test_forward::test_a_link_that_is_back_is_seen_within_two_looks",
        "edge/test_forward::test_waits_double_up_to_a_minute_with_full_jitter",
        "edge/test_forward::test_a_sink_never_raises_for_link_or_disk",
    ],
    "the centre refuses": [
        "edge/test_forward::test_a_refused_token_is_tried_rarely_or_when_there_is_another"
    ],
    "an answer to a batch": [
        "edge/test_forward::test_cut_exchanges_lose_and_double_nothing",
        "edge/test_forward::test_an_answer_that_is_not_a_confirmation_deletes_nothing",
    ],
    "an outbox reaches": [
        "edge/test_outbox::test_the_lowest_class_gives_way_and_the_notes_add_up",
        "edge/test_outbox::test_a_full_disk_costs_the_ballast_then_rows_and_never_an_alarm",
        "edge/test_outbox::test_a_disk_that_others_fill_keeps_rows_in_memory_and_the_run_goes_on",
        "edge/test_outbox::test_a_full_disk_can_be_drained",
    ],
    "an outbox file": ["edge/test_outbox::test_a_broken_file_is_set_aside_and_what_can_be_read_is_kept"],
    "a device's card": [
        "edge/test_forward::test_a_copied_card_loses_and_doubles_nothing",
        "edge/test_forward::test_an_old_image_of_the_card_that_is_put_back_is_noticed",
    ],
    "the centre is restored": [
        "edge/test_forward::test_a_centre_out_of_an_older_copy_records_what_is_missing"
    ],
    "the centre's disk": [
        "edge/test_forward::test_a_full_disk_at_the_centre_takes_nothing_half_and_devices_wait"
    ],
    "the clock of a device": [
        "edge/test_forward::test_a_wrong_clock_is_known_at_the_centre_and_changes_nothing_else"
    ],
    "`kill -9` or a power cut of a device": [
        "edge/test_forward::test_killed_again_and_again_nothing_is_lost_twice_or_out_of_order",
        "edge/test_outbox::test_without_power_no_number_is_given_twice_and_no_promise_is_broken",
    ],
    "two agents": [
        "edge/test_outbox::test_two_agents_in_one_folder_are_refused",
        "edge/test_slots::test_two_agents_in_one_folder",
        "edge/test_central::test_two_centres_in_one_folder_are_refused",
    ],
    "a new model is worse": [
        "release/test_rollout::test_each_guard_rolls_back_and_is_named",
        "release/test_rollout::test_nothing_seen_is_insufficient_and_expires_at_the_deadline",
    ],
    "a new model crashes": [
        "release/test_rollout::test_a_failure_ends_it_at_once",
        "release/test_rollout::test_a_failure_of_both_models_is_the_devices",
    ],
    "a model in the shadow crashes": [
        "release/test_shadow::test_whatever_it_does_it_is_started_again_and_then_has_failed",
        "release/test_shadow::test_killed_from_outside_it_comes_back_and_says_nothing_about_the_model",
        "release/test_shadow::test_a_run_has_the_same_bytes_with_and_without_a_shadow_that_is_killed",
    ],
    "a shadow is slower": [
        "release/test_shadow::test_a_frame_is_skipped_and_counted_when_both_slots_are_taken"
    ],
    "a shadow has failed": ["release/test_trial::test_what_went_wrong_decides"],
    "evidence of other models": [
        "release/test_trial::test_runs_of_other_models_or_of_another_stage_are_refused",
        "release/test_trial::test_the_same_minutes_twice_are_refused",
    ],
    "`kill -9` between the rollout's file": [
        "release/test_trial::test_what_a_killed_command_left_is_caught_up_by_the_next",
        "release/test_trial::test_a_version_that_was_moved_by_hand_is_left_alone",
    ],
    "a lens gets dirty during": [
        "release/test_rollout::test_a_dirty_lens_excuses_its_camera",
        "release/test_rollout::test_too_many_excused_cameras_prove_nothing",
    ],
    "`kill -9` or a power cut during a rollout": [
        "release/test_rollout::test_a_file_cut_at_any_byte_is_an_earlier_state_or_no_rollout",
        "release/test_rollout::test_a_torn_line_is_taken_away_by_the_next_event",
    ],
    "a person overrules": ["release/test_rollout::test_a_person_may_overrule_and_the_file_says_so"],
    "an update of a device": [
        "edge/test_slots::test_a_kill_at_every_step_leaves_one_whole_model",
        "edge/test_slots::test_sigkill_at_some_steps",
        "edge/test_slots::test_after_a_power_cut_at_any_moment_the_state_names_whole_models",
    ],
    "a released model": [
        "release/test_preflight::test_swapped_classes_are_found_by_the_golden_pictures",
        "release/test_preflight::test_absolute_limits",
        "edge/test_box::test_the_preflight_of_a_real_device_keeps_a_broken_model_away",
    ],
    "a model on trial crashes": [
        "edge/test_agent::test_a_bad_model_is_rolled_back_and_blocked",
        "edge/test_agent::test_a_model_that_kills_its_agent_is_started_twice_at_most",
        "edge/test_box::test_a_real_run_gets_a_signed_release_and_returns_from_one_that_crashes",
    ],
    "a model on trial cannot": [
        "edge/test_agent::test_without_a_camera_a_model_is_neither_good_nor_bad",
        "edge/test_updates::test_a_model_that_was_put_back_is_not_tried_again_at_once",
    ],
    "the model before": [
        "edge/test_slots::test_a_version_that_vanished_gives_way_to_the_one_before",
        "edge/test_agent::test_no_model_at_all_is_a_state",
        "edge/test_agent::test_the_first_model_runs_until_a_release_has_come",
    ],
    "the agent of a device": [
        "edge/test_agent::test_the_run_of_an_agent_that_was_killed_is_ended_by_the_next_one",
        "edge/test_agent::test_restarts_of_the_agent_count_for_nothing_without_a_trial",
    ],
    "the download of an update": [
        "edge/test_updates::test_an_attack_is_refused_with_its_reason",
        "edge/test_updates::test_a_torn_bundle_in_the_inbox_is_downloaded_again",
        "edge/test_updates::test_what_was_withdrawn_is_not_installed",
        "edge/test_updates::test_a_refusal_is_reported_once_and_asked_again_later_and_later",
    ],
    "an update while the clock": [
        "edge/test_updates::test_a_clock_that_fell_back_is_reported_and_does_not_stop_updates",
        "edge/test_updates::test_expired_metadata_only_waits",
    ],
    "the disk of a device": [
        "edge/test_agent::test_a_disk_that_is_full_for_a_while_delays_the_verdict",
        "edge/test_updates::test_a_full_disk_is_a_refusal",
    ],
    "the report of an update": ["edge/test_agent::test_a_report_that_cannot_be_written_never_rolls_back"],
    "the answer to an enrolment": ["edge/test_box::test_a_device_makes_its_own_token_and_sends_it_again"],
    "a device is too hot": [
        "monitoring/test_hardware::test_each_figure_has_a_signal_that_comes_and_goes",
        "monitoring/test_hardware::test_no_content_of_any_file_is_an_error",
    ],
    "devices of a fleet": [
        "release/test_rollout::test_the_brake",
        "release/test_rollout::test_a_halt_leaves_the_cameras_and_ends_it",
        "edge/test_devices::test_two_of_the_first_ring_that_roll_back_halt_it_everywhere",
        "edge/test_devices::test_a_fifth_of_all_that_roll_back_halts_a_later_ring",
    ],
    "a device is silent": [
        "edge/test_devices::test_each_state_has_its_reason",
        "edge/test_devices::test_devices_that_are_away_do_not_hold_up_the_others",
        "monitoring/test_exporter::test_each_rule_fires_on_the_series_that_it_is_for",
    ],
    "a new model waits in a ring": ["edge/test_devices::test_silence_never_promotes"],
    "the centre is killed": [
        "edge/test_central::test_a_centre_that_is_killed_in_mid_batch_loses_and_doubles_nothing"
    ],
    "a database of the centre": ["edge/test_central::test_a_corrupt_database_says_what_to_do"],
    "heartbeats cannot be written": [
        "edge/test_central::test_heartbeats_that_cannot_be_written_wait_and_the_newest_is_written_later"
    ],
    "a token or code is guessed": [
        "edge/test_central::test_an_enrolment_that_is_not_right_is_refused",
        "edge/test_central::test_a_code_is_for_a_day_and_for_once",
        "edge/test_central::test_a_revoked_device_is_refused_within_seconds_also_by_a_command",
    ],
    "silent, slow or too many": [
        "edge/test_central::test_who_says_nothing_or_a_byte_at_a_time_is_let_go",
        "edge/test_central::test_a_body_that_does_not_come_is_408",
        "edge/test_central::test_too_many_connections_are_asked_to_come_later",
    ],
    "names of cameras or devices": [
        "edge/test_forward::test_a_camera_whose_name_is_not_utf8_does_not_hold_up_the_outbox",
        "edge/test_central_page::test_names_that_want_to_be_html_are_text",
    ],
    "a part of a device": [
        "edge/test_central::test_a_part_that_is_none_is_refused_once_and_the_others_are_taken"
    ],
    "the key of the timestamp": [
        "edge/test_central::test_a_missing_key_is_a_problem_that_stops_nothing_else"
    ],
    "a form of another site": [
        "edge/test_central_page::test_a_button_needs_the_token_of_the_session_and_the_own_site",
        "edge/test_central_page::test_wrong_passwords_are_answered_with_a_wait",
    ],
    "a log of accesses": [
        "core/test_chain::test_every_changed_byte_is_found",
        "core/test_chain::test_removed_and_moved_lines_are_found",
        "privacy/test_access::test_a_cut_end_is_found_with_the_head_only",
    ],
    "an erasure is killed": ["privacy/test_erasure::test_killed_at_twenty_points_the_same_command_finishes"],
    "the disk is full while something is erased": [
        "privacy/test_erasure::test_a_full_disk_stops_it_and_nothing_is_half"
    ],
    "two erasures": ["privacy/test_erasure::test_two_at_once_are_refused"],
    "a label server, database": [
        "privacy/test_erasure::test_a_store_that_is_offline_is_listed_and_done_later",
        "privacy/test_remote::test_a_bucket_that_is_offline_is_listed",
        "privacy/test_remote::test_a_label_server_that_is_offline_is_listed",
    ],
    "an outbox is open": [
        "privacy/test_erasure::test_an_open_outbox_is_listed",
        "privacy/test_erasure::test_a_collection_that_is_written_to_is_listed",
        "privacy/test_erasure::test_a_damaged_table_is_listed_and_the_rest_goes",
    ],
    "a certificate is edited": [
        "privacy/test_erasure::test_an_edited_certificate_is_found",
        "privacy/test_erasure::test_an_edited_certificate_with_a_new_digest_is_not_in_the_log",
    ],
    "a copy of an erased picture": [
        "privacy/test_erasure::test_a_copy_that_comes_back_is_found_by_its_bytes"
    ],
    "a key is destroyed": [
        "privacy/test_encryption::test_an_erased_camera_is_unreadable_in_every_copy",
        "privacy/test_encryption::test_a_key_that_others_can_read_is_refused",
    ],
    "a process of a batch": [
        "scale/test_batch::test_workers_killed_at_every_point_lose_and_double_nothing",
        "scale/test_batch::test_a_driver_killed_again_and_again",
    ],
    "one of several processes of a run": [
        "service/test_processes::test_a_process_that_is_killed_comes_back_and_the_other_notices_nothing",
        "service/test_processes::test_a_process_that_cannot_live_fails_alone",
        "service/test_processes::test_one_that_hangs_is_ended_at_once",
    ],
    "a camera cannot be opened while costs": [
        "service/test_processes::test_a_camera_that_cannot_be_opened_costs_as_much_as_the_others"
    ],
    "a client of a served model": [
        "scale/test_inference_protocol::test_a_wrong_tensor_is_refused",
        "scale/test_inference_protocol::test_every_request_has_an_answer",
        "scale/test_inference_protocol::test_a_full_queue_refuses_and_a_request_that_was_given_up_costs_nothing",
    ],
    "a served model fails": [
        "scale/test_inference_protocol::test_a_model_that_has_failed_is_unavailable_until_it_works_again",
        "scale/test_inference_protocol::test_the_deadline_of_the_server_is_a_timeout_of_the_client",
        "scale/test_inference_protocol::test_a_full_server_is_overloaded",
    ],
    "a unit of a batch": ["scale/test_batch::test_a_poison_unit_is_set_aside_and_the_others_are_done"],
    "a file of a batch": [
        "scale/test_batch::test_a_changed_unit_is_reported_and_made_again_by_the_next_call"
    ],
    "a part of a batch": ["scale/test_batch::test_a_part_that_was_cut_off_is_made_again"],
    "a move of old files": [
        "scale/test_ageing::test_killed_at_any_point_nothing_is_lost_and_it_goes_on",
        "scale/test_ageing::test_a_full_disk_leaves_the_file_where_it_is",
    ],
    "an old file is in use": [
        "scale/test_ageing::test_a_file_in_use_a_link_and_a_draft_stay",
        "scale/test_ageing::test_another_file_of_the_same_name_is_neither_overwritten_nor_lost",
    ],
    "a store deletes late": [
        "scale/test_ageing::test_an_index_only_grows_and_finds_both_directions",
        "scale/test_ageing::test_age_counts_from_the_upload_in_a_bucket_and_what_is_too_old_by_its_name_is_found",
    ],
    "the rules of a bucket": [
        "scale/test_ageing::test_what_the_imitation_would_accept_and_amazon_would_not_is_refused"
    ],
    "a store cannot be listed": ["scale/test_ageing::test_a_store_that_is_off_is_an_error_in_time"],
    "the model of a batch": [
        "scale/test_batch::test_a_model_that_cannot_be_opened_ends_the_batch_at_once",
        "scale/test_batch::test_a_full_disk_ends_the_batch_and_sets_nothing_aside",
    ],
    "an actor of Ray": [
        "scale/test_ray::test_actors_that_die_lose_and_double_nothing",
        "scale/test_ray::test_real_actors_killed_in_the_middle",
    ],
    "Ray does not start": [
        "scale/test_ray::test_a_cluster_that_does_not_start_is_a_sentence",
        "scale/test_ray::test_without_ray_the_extra_is_named",
    ],
    "a plan is asked": [
        "scale/test_capacity::test_wishes_that_cannot_be_planned",
        "scale/test_capacity::test_a_benchmark_without_raw_times_is_measured_again",
        "scale/test_capacity::test_a_benchmark_of_another_machine_is_refused",
        "scale/test_capacity::test_a_run_of_another_model_is_refused",
    ],
    "prices are older": ["scale/test_capacity::test_old_future_and_nameless_prices_are_warned_about"],
    "a clock in the log": ["scale/test_capacity::test_a_clock_that_was_wrong_is_no_profile"],
    "the generator of": ["scale/test_loadtest::test_a_late_generator_makes_a_phase_void"],
    "a request of a load test": ["scale/test_loadtest::test_what_is_never_answered_is_lost"],
    "a cell of a report prints": [
        "reporting/test_runner::test_a_secret_that_a_cell_printed_is_not_published"
    ],
}


def rows() -> list[str]:
    "The rows of the table, without their first bar."
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    part = text.partition("## When something breaks")[2].partition("\n## ")[0]
    return [line.removeprefix("| ") for line in part.splitlines() if line.startswith("| ")][1:]


@cache
def names_in(name: str) -> set[str]:
    "Names of the test functions of a file."
    tree = ast.parse((ROOT / "tests" / f"{name}.py").read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: re.split(r"[|,(]", row)[0].strip()[:50])
def test_every_row_has_its_proof(row):
    proofs = [key for key in PROOF if row.startswith(key)]
    assert len(proofs) == 1, "name the tests that prove this row in PROOF"
    for proof in PROOF[proofs[0]]:
        file, _, name = proof.partition("::")
        assert name in names_in(file), proof


def test_every_proof_has_its_row():
    assert [key for key in PROOF if not any(row.startswith(key) for row in rows())] == []
